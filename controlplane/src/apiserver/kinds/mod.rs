//! The built-in kinds, one file each: names, defaults, rules, and how each is shown.
//!
//! To add a kind: write its file with one `pub const KIND: Kind`, list it in [`kinds`], and its facts are served,
//! discovered, validated, documented and printed. A kind is listed only if something in this program acts on it or a
//! node's clients need it stored.

mod configmap;
mod csi;
mod deployment;
mod endpoints;
mod endpointslice;
mod event;
mod lease;
mod meta;
mod namespace;
mod networkpolicy;
mod node;
mod pod;
mod rbac;
mod replicaset;
mod runtimeclass;
mod secret;
mod service;
mod serviceaccount;
mod strategy;
#[cfg(test)]
mod tests;
mod workload;

use super::kind::Kind;

/// Every kind that is stored, in the order of discovery.
pub fn kinds() -> &'static [Kind] {
    const KINDS: &[Kind] = &[
        configmap::KIND,
        endpoints::KIND,
        event::KIND,
        namespace::KIND,
        node::KIND,
        pod::KIND,
        secret::KIND,
        serviceaccount::KIND,
        service::KIND,
        deployment::KIND,
        replicaset::KIND,
        lease::KIND,
        endpointslice::KIND,
        networkpolicy::KIND,
        runtimeclass::KIND,
        csi::DRIVER,
        csi::NODE,
        rbac::CLUSTER_ROLE,
        rbac::CLUSTER_ROLE_BINDING,
        rbac::ROLE,
        rbac::ROLE_BINDING,
    ];
    KINDS
}
