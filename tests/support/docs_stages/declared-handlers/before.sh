arc-server serve --data-dir ./data --listen 127.0.0.1:8484 --no-auth
export ARC_SERVER_URL=http://127.0.0.1:8484
mkdir -p /etc/arc /var/lib/shop
echo 'Bearer of-the-cache' > /etc/arc/cache-token
python shop.py
python cache.py
