mkdir -p /etc/arc-agent
echo user:password > /etc/arc-agent/proxy-auth
PYTHONPATH=/usr/src/arc python certificates.py
