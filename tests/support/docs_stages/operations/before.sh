mkdir -p /var/lib/arc-server /backups
export ARC_SERVER_DATA_DIR=/var/lib/arc-server
arc-server token create --scope sender --deployment acme-eu-1 --init > /dev/null
