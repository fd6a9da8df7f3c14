"""Making, comparing and exporting sparse subnetworks."""
