arc-server serve --data-dir ./data --listen 127.0.0.1:8484 --no-auth
export ARC_SERVER_URL=http://127.0.0.1:8484
mkdir -p /run/secrets
echo any > /run/secrets/arc
