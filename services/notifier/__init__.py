"""The notifier: reads transitions from the bus, records alerts, and delivers them with retries."""
