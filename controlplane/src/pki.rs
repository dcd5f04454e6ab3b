//! The cluster's certificate authority, and the certificates and keys that it issues.
