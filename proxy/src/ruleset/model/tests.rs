use super::*;
use crate::ruleset::Value;
use crate::service::{Affinity, Frontend, Protocol};

fn address(last: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, (last >> 8) as u8, last as u8], 8080))
}

fn port(cluster_ip: [u8; 4], endpoints: &[u16]) -> ServicePort {
    let cluster: Vec<SocketAddr> = endpoints.iter().map(|last| address(*last)).collect();
    ServicePort {
        name: "ns/web:http".into(),
        family: Family::Ip,
        protocol: Protocol::Tcp,
        cluster_ip: Frontend {
            address: cluster_ip.into(),
            protocol: Protocol::Tcp,
            port: 80,
        },
        external: Vec::new(),
        balanced: Vec::new(),
        source_ranges: Vec::new(),
        node_port: None,
        affinity: None,
        internal_local: false,
        external_local: false,
        any: !cluster.is_empty(),
        cluster_draining: false,
        local_draining: false,
        on_node: cluster.iter().map(SocketAddr::ip).collect(),
        cluster,
        local: Vec::new(),
    }
}

fn resolved(ports: Vec<ServicePort>) -> ResolvedService {
    ResolvedService {
        ports,
        ..ResolvedService::default()
    }
}

fn set(model: &mut Model, name: &str, service: Option<ResolvedService>) -> Difference {
    let name = ServiceName::new("ns", name);
    let next = model.plan(&name, service.as_ref());
    let (difference, before) = model.replace(&name, next);
    model.settle(&name, before);
    difference
}

fn sets(entries: &[Labelled]) -> Vec<SetName> {
    entries.iter().map(|labelled| labelled.entry.set).collect()
}

const WEB: [u8; 4] = [10, 96, 0, 1];

#[test]
fn one_endpoint_more_is_one_endpoint_and_its_hairpin() {
    let mut model = Model::new(Family::Ip);
    set(
        &mut model,
        "web",
        Some(resolved(vec![port(WEB, &[1, 2, 3])])),
    );
    let difference = set(
        &mut model,
        "web",
        Some(resolved(vec![port(WEB, &[1, 2, 3, 4])])),
    );
    assert_eq!(
        sets(&difference.add),
        [SetName::Endpoints, SetName::Hairpin]
    );
    assert!(difference.delete.is_empty());
    let difference = set(
        &mut model,
        "web",
        Some(resolved(vec![port(WEB, &[1, 3, 4])])),
    );
    assert_eq!(
        sets(&difference.delete),
        [SetName::Endpoints, SetName::Hairpin]
    );
    assert!(difference.add.is_empty());
}

#[test]
fn a_service_without_endpoints_is_refused_and_not_translated() {
    let mut model = Model::new(Family::Ip);
    let difference = set(&mut model, "web", Some(resolved(vec![port(WEB, &[])])));
    assert_eq!(
        sets(&difference.add),
        [SetName::ClusterAddresses, SetName::NoEndpointServices]
    );
    let difference = set(&mut model, "web", Some(resolved(vec![port(WEB, &[1])])));
    assert_eq!(sets(&difference.delete), [SetName::NoEndpointServices]);
    assert_eq!(
        sets(&difference.add),
        [SetName::ClusterIps, SetName::Endpoints, SetName::Hairpin]
    );
}

#[test]
fn deleting_every_service_leaves_nothing() {
    let mut model = Model::new(Family::Ip);
    let everything = ServicePort {
        external: vec![Frontend {
            address: [192, 0, 2, 1].into(),
            protocol: Protocol::Tcp,
            port: 80,
        }],
        node_port: Some(30_080),
        affinity: Some(Affinity { seconds: 60 }),
        external_local: true,
        local: vec![address(1)],
        ..port(WEB, &[1, 2])
    };
    set(&mut model, "web", Some(resolved(vec![everything])));
    set(
        &mut model,
        "api",
        Some(resolved(vec![port([10, 96, 0, 2], &[1])])),
    );
    assert_eq!(model.affinities(), BTreeSet::from([60]));
    let held = model.entries().count();
    let first = set(&mut model, "web", None);
    let second = set(&mut model, "api", None);
    assert_eq!(first.delete.len() + second.delete.len(), held);
    assert_eq!(model.entries().count(), 0);
    assert!(
        model.claims.is_empty() && model.list_numbers.is_empty() && model.handle_numbers.is_empty()
    );
    assert!(model.shared.is_empty());
}

#[test]
fn a_shared_hairpin_goes_with_its_last_user() {
    let mut model = Model::new(Family::Ip);
    set(&mut model, "web", Some(resolved(vec![port(WEB, &[1])])));
    let difference = set(
        &mut model,
        "api",
        Some(resolved(vec![port([10, 96, 0, 2], &[1])])),
    );
    assert!(!sets(&difference.add).contains(&SetName::Hairpin));
    assert!(!sets(&set(&mut model, "web", None).delete).contains(&SetName::Hairpin));
    assert!(sets(&set(&mut model, "api", None).delete).contains(&SetName::Hairpin));
}

#[test]
fn the_first_service_keeps_a_frontend_and_the_second_waits_for_it() {
    let mut model = Model::new(Family::Ip);
    let shared = Frontend {
        address: [192, 0, 2, 1].into(),
        protocol: Protocol::Tcp,
        port: 80,
    };
    let with = |cluster_ip| ServicePort {
        external: vec![shared],
        ..port(cluster_ip, &[1])
    };
    set(&mut model, "web", Some(resolved(vec![with(WEB)])));
    let difference = set(
        &mut model,
        "api",
        Some(resolved(vec![with([10, 96, 0, 2])])),
    );
    assert!(!sets(&difference.add).contains(&SetName::ExternalIps));
    let name = ServiceName::new("ns", "web");
    let (difference, before) = model.replace(&name, None);
    assert!(sets(&difference.delete).contains(&SetName::ExternalIps));
    assert_eq!(
        model.settle(&name, before),
        BTreeSet::from([ServiceName::new("ns", "api")])
    );
    let difference = set(
        &mut model,
        "api",
        Some(resolved(vec![with([10, 96, 0, 2])])),
    );
    assert_eq!(sets(&difference.add), [SetName::ExternalIps]);
}

#[test]
fn a_refused_change_leaves_the_model_as_it_was() {
    let mut model = Model::new(Family::Ip);
    set(&mut model, "web", Some(resolved(vec![port(WEB, &[1, 2])])));
    let collect = |model: &Model| {
        let mut entries: Vec<Entry> = model.entries().map(|labelled| labelled.entry).collect();
        entries.sort_unstable();
        entries
    };
    let held = collect(&model);
    let name = ServiceName::new("ns", "web");
    let next = model.plan(&name, Some(&resolved(vec![port(WEB, &[3, 4, 5, 6, 7])])));
    let (_, before) = model.replace(&name, next);
    model.undo(&name, before);
    assert_eq!(collect(&model), held);
    let difference = set(&mut model, "web", Some(resolved(vec![port(WEB, &[1, 2])])));
    assert!(difference.is_empty());
}

#[test]
fn an_endpoint_with_affinity_keeps_its_handle_when_slots_are_dealt_anew() {
    let mut model = Model::new(Family::Ip);
    let with = |endpoints: &[u16]| ServicePort {
        affinity: Some(Affinity { seconds: 60 }),
        ..port(WEB, endpoints)
    };
    set(&mut model, "web", Some(resolved(vec![with(&[5])])));
    let handles = |model: &Model| -> BTreeSet<(Key, Value)> {
        let entries = model.entries().map(|labelled| labelled.entry);
        entries
            .filter(|entry| entry.set == SetName::AffinityEndpoints)
            .map(|entry| (entry.key, entry.value))
            .collect()
    };
    let before = handles(&model);
    set(
        &mut model,
        "web",
        Some(resolved(vec![with(&[1, 2, 3, 4, 5, 6, 7, 8, 9])])),
    );
    assert!(handles(&model).is_superset(&before));
}

#[test]
fn numbers_are_the_same_in_every_process() {
    let ids = |order: [&str; 2]| {
        let mut model = Model::new(Family::Ip);
        for (index, name) in order.into_iter().enumerate() {
            let named = ServicePort {
                name: format!("ns/{name}").into(),
                ..port([10, 96, 1, index as u8], &[1])
            };
            set(&mut model, name, Some(resolved(vec![named])));
        }
        let lists = model
            .services
            .iter()
            .map(|(name, state)| (name.clone(), state.ports[0].cluster.number));
        lists.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(ids(["a", "b"]), ids(["b", "a"]));
}

#[test]
fn internal_local_uses_the_list_of_this_node_even_if_it_is_empty() {
    let mut model = Model::new(Family::Ip);
    let local_only = ServicePort {
        internal_local: true,
        ..port(WEB, &[1])
    };
    let difference = set(&mut model, "web", Some(resolved(vec![local_only])));
    // The list of all endpoints is not there at all: no frontend leads to it.
    assert_eq!(
        sets(&difference.add),
        [
            SetName::ClusterAddresses,
            SetName::ClusterIps,
            SetName::Hairpin
        ]
    );
    let with_node_port = ServicePort {
        internal_local: true,
        node_port: Some(30_080),
        ..port(WEB, &[1])
    };
    let difference = set(&mut model, "web", Some(resolved(vec![with_node_port])));
    assert_eq!(
        sets(&difference.add),
        [SetName::NodePorts, SetName::Endpoints]
    );
}
