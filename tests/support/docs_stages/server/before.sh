mkdir -p /var/lib/arc-server
python make_certificate.py /etc/arc-server/tls
