arc-server serve --data-dir ./data --listen 127.0.0.1:8484
export ARC_SERVER_DATA_DIR=./data
