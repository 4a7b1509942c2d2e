mkdir -p /etc/arc /var/lib/arc-agent
mkfifo begun
PYTHONPATH=/usr/src/arc python front.py https://arc.example.com
arc-server serve --data-dir ./data --listen 127.0.0.1:8484
arc-server token create --scope agent --deployment acme-eu-1 --data-dir data --out /etc/arc/token
export SSL_CERT_FILE=$PWD/ca/ca.crt
export ARC_AGENT_SERVER_TOKEN_FILE=/etc/arc/token ARC_AGENT_DATA_DIR=/var/lib/arc-agent
cp agent.yaml /etc/arc/agent.yaml
arc-agent run --config /etc/arc/agent.yaml
arc-server token create --scope sender --deployment acme-eu-1 --data-dir data --out sender.token
arc invoke acme-eu-1 tables.load --no-wait --server http://127.0.0.1:8484 --token-file sender.token
read -r _ < begun
