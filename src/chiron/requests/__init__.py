"""Rules about requests that routers and workers share."""
