"""Pictures and label maps from anywhere: bounded reading, and squares cut out of them."""
