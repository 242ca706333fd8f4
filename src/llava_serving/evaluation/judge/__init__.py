"""A text model that judges. It knows no evaluation."""
