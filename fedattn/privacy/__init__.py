"""Privacy: what happened (`events`), its cost (`accountants`), what may be claimed (`claims`)."""
