"""What the services are written against: records, and the ports of store, blobs, push and clock."""
