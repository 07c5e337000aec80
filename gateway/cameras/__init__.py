"""`edge-gateway camera`: IP cameras and files as a site's cameras, for boxes without anything that takes pictures."""
