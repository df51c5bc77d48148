"""Files that hold the daemon's state through crashes, damage and full disks."""
