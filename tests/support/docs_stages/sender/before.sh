arc-server serve --data-dir ./data --listen 127.0.0.1:8484 --no-auth
arc-agent run --server http://127.0.0.1:8484 --deployment acme-eu-1 --handlers acme.py
mkdir -p /run/secrets
echo any > /run/secrets/arc
echo '{"rows": 3}' > table.json
gzip --keep table.json
head -c 1000 /dev/urandom > photo.png
