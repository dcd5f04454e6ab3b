//! The API server as its clients see it, in process and over TLS.

mod api {
    pub mod deletion;
    pub mod harness;
    pub mod kubelets;
    pub mod nodes;
    pub mod objects;
    pub mod rights;
    pub mod tls;
    pub mod watches;
}
