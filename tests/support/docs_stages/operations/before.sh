mkdir -p /var/lib/arc-server /backups
export ARC_SERVER_DATA_DIR=/var/lib/arc-server
arc-server token create --scope sender --deployment acme-eu-1 --init > /dev/null
arc-server target add acme-eu-1 old-host 2> /dev/null
cp -r /var/lib/arc-server /var/lib/arc-server.old     # as `restore` and `begin-epoch` find it
