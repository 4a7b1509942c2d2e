mkdir -p /var/lib/arc-server
