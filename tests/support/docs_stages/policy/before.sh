mkdir -p /etc/arc
echo 'rules: []' > policy.yaml
ln -s "$PWD/policy.yaml" /etc/arc/policy.yaml
arc-server serve --data-dir ./data --listen 127.0.0.1:8484 --no-auth
export ARC_SERVER_URL=http://127.0.0.1:8484
export ARC_AGENT_HANDLERS_MODULES=services.py
