//! The laws every adapter method obeys, with fixtures and tiny models.
