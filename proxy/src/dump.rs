//! The rules as text, from the API alone: no kernel is asked or changed.

use crate::config::{Config, Mode};
use crate::family::FamilyRules;
use crate::iptables::FamilyChains;
use crate::metrics::Metrics;
use crate::service::object::{EndpointSlice, Node, Service};
use crate::service::{NodeFacts, Tracker};
use crate::source::{self, Update};
use crate::table::FamilyTable;
use linux::nftables::Family;

/// What the proxy would make on this node if it had just started, for both families: in the words of `nft list table`
/// (an address in a slot may differ from a running proxy's, which keeps the slots that it dealt before), or as
/// `iptables-restore` gets it.
///
/// # Errors
/// The API's.
pub async fn dump(config: &Config, client: &kube::Client) -> Result<String, kube::Error> {
    let node = NodeFacts::named(&config.node_name);
    let mut tracker = Tracker::new(node);
    let lists = [
        source::list::<Node>(client, &source::node(&config.node_name), &config.node_name).await?,
        source::list::<Service>(client, &source::services(), &config.node_name).await?,
        source::list::<EndpointSlice>(client, &source::slices(), &config.node_name).await?,
    ];
    for (update, _) in lists {
        if let Update::List(_, changes) = update {
            changes.into_iter().for_each(|change| tracker.apply(change));
        }
    }
    let changed = tracker.take_changed();
    let text = |family| {
        let node = tracker.node();
        let mut rules: Box<dyn FamilyRules> = match config.mode {
            Mode::Nftables => Box::new(FamilyTable::new(family, config, node)),
            Mode::Iptables(settings) => {
                let metrics = Metrics::new(config.mode);
                Box::new(FamilyChains::new(family, settings, config, node, metrics))
            }
        };
        for name in &changed {
            rules.expect(name, tracker.resolve(name).as_ref());
        }
        rules.text()
    };
    Ok(format!("{}\n{}", text(Family::Ip), text(Family::Ip6)))
}
