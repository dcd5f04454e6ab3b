//! Where the API server's objects are kept.
