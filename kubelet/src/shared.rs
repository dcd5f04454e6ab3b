//! What all pod workers of one kubelet share.

use std::sync::Arc;

use crate::config::Config;
use crate::fields::NodeFacts;
use crate::images::Images;
use crate::objects::ObjectCache;
use crate::probes::ProbeRunner;
use crate::recorder::Recorder;
use crate::runtime::{Cri, RuntimeCache};
use crate::services::Services;
use crate::spec::dns::NodeDns;
use crate::status::StatusWriter;
use crate::tokens::Tokens;
use crate::user_namespaces::Ranges;
use crate::wakes::Wakes;

/// The parts of a kubelet, as its workers use them.
pub struct Shared {
    /// What it was told.
    pub config: Arc<Config>,
    /// The API.
    pub client: kube::Client,
    /// The runtime.
    pub cri: Cri,
    /// What the runtime has.
    pub cache: RuntimeCache,
    /// Who is to look at its pod.
    pub wakes: Wakes,
    /// ConfigMaps and Secrets.
    pub objects: ObjectCache,
    /// Service account tokens.
    pub tokens: Tokens,
    /// Service variables.
    pub services: Services,
    /// Events.
    pub recorder: Recorder,
    /// Images.
    pub images: Images,
    /// Probes.
    pub probes: ProbeRunner,
    /// Statuses.
    pub writer: StatusWriter,
    /// Ids of pods with user namespaces.
    pub user_ranges: Ranges,
    /// The node, as the downward API shows it.
    pub facts: NodeFacts,
    /// The node's resolver and the cluster's.
    pub dns: NodeDns,
    /// The node's memory, bytes.
    pub node_memory: i64,
    /// Whether the node has cgroup v2 alone.
    pub cgroup_unified: bool,
    /// The runtime's name, the scheme of container ids.
    pub runtime_name: String,
}
