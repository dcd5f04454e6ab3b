//! What the API says: NetworkPolicies, Pods and Namespaces, as changes for the model.

use super::facts::{Name, PodFacts, PolicyFacts};
use super::object::{Namespace, NetworkPolicy, Pod};
use crate::service::object::Metadata;
use crate::source::{Followed, Update};
use api::selector::Labels;

/// A kind that policies are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// NetworkPolicies.
    Policies,
    /// Pods.
    Pods,
    /// Namespaces.
    Namespaces,
}

/// What changed.
#[derive(Debug, Clone)]
pub enum Change {
    /// A policy is so now, or is gone.
    Policy(Name, Option<Box<PolicyFacts>>),
    /// A pod is so now, or has no address any more.
    Pod(Name, Option<Box<PodFacts>>),
    /// A namespace has these labels now, or is gone.
    Namespace(String, Option<Labels>),
}

/// News of one kind.
pub type News = Update<Kind, Change>;

pub const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies?";
pub const PODS: &str = "/api/v1/pods?";
pub const NAMESPACES: &str = "/api/v1/namespaces?";

fn name(metadata: &Metadata) -> Name {
    Name::new(&metadata.namespace, &metadata.name)
}

impl Followed for NetworkPolicy {
    type Kind = Kind;
    type Change = Change;
    const KIND: Kind = Kind::Policies;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn changed(&self, _node: &str) -> Change {
        let facts = PolicyFacts::of(self).unwrap_or_else(|error| {
            tracing::error!(policy = %name(&self.metadata), error, "the policy can't be understood: its namespace is closed");
            PolicyFacts::closed()
        });
        Change::Policy(name(&self.metadata), Some(Box::new(facts)))
    }

    fn gone(&self) -> Change {
        Change::Policy(name(&self.metadata), None)
    }
}

impl Followed for Pod {
    type Kind = Kind;
    type Change = Change;
    const KIND: Kind = Kind::Pods;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn changed(&self, node: &str) -> Change {
        Change::Pod(name(&self.metadata), PodFacts::of(self, node).map(Box::new))
    }

    fn gone(&self) -> Change {
        Change::Pod(name(&self.metadata), None)
    }
}

impl Followed for Namespace {
    type Kind = Kind;
    type Change = Change;
    const KIND: Kind = Kind::Namespaces;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn changed(&self, _node: &str) -> Change {
        let labels = self.metadata.labels.clone();
        Change::Namespace(self.metadata.name.clone(), Some(labels))
    }

    fn gone(&self) -> Change {
        Change::Namespace(self.metadata.name.clone(), None)
    }
}
