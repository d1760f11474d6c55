"""Support is evidence: recipes that run, records that measure them, and the page that is made of both."""
