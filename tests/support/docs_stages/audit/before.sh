mkdir -p /etc/arc /var/lib/arc-agent
arc-server serve --data-dir ./data --listen 127.0.0.1:8484 --no-auth
export ARC_SERVER_URL=http://127.0.0.1:8484
printf 'server: {url: "http://127.0.0.1:8484"}\ndeployment: acme-eu-1\ndata_dir: /var/lib/arc-agent\n' > /etc/arc/agent.yaml
arc-agent run --config /etc/arc/agent.yaml
export ARC_AGENT_SERVER_URL=http://127.0.0.1:8484 ARC_AGENT_DEPLOYMENT=acme-eu-1 ARC_AGENT_DATA_DIR=/var/lib/arc-agent
