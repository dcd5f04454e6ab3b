//! The rules as text, from the API alone: no kernel is asked or changed.

use crate::config::Config;
use crate::service::object::{EndpointSlice, Node, Service};
use crate::service::{NodeFacts, Tracker};
use crate::source::{self, Update};
use crate::table::FamilyTable;
use linux::nftables::Family;

/// What `nft list table` would print on this node if its proxy had just started, for both families. (An address in a
/// slot may differ from a running proxy's, which keeps the slots that it dealt before.)
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
        let mut table = FamilyTable::new(family, config, tracker.node());
        for name in &changed {
            table.expect(name, tracker.resolve(name).as_ref());
        }
        table.text()
    };
    Ok(format!("{}\n{}", text(Family::Ip), text(Family::Ip6)))
}
