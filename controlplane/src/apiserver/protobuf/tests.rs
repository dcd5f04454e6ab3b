use api::schema::{Struct, decode as typed};
use proptest::prelude::*;
use serde_json::json;

use super::{Error, decode};

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn bytes(number: u64, content: &[u8]) -> Vec<u8> {
    [
        varint(number << 3 | 2),
        varint(content.len() as u64),
        content.to_vec(),
    ]
    .concat()
}

fn number(number: u64, value: i64) -> Vec<u8> {
    [varint(number << 3), varint(value.cast_unsigned())].concat()
}

fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
    [
        b"k8s\0".to_vec(),
        bytes(1, &meta),
        bytes(2, raw),
        bytes(3, b""),
        bytes(4, b""),
    ]
    .concat()
}

#[test]
fn a_deployment_is_decoded_by_its_numbers() {
    let port = [bytes(1, b"http"), number(3, 80)].concat();
    let quantity = bytes(1, b"500m");
    let limits = bytes(1, &[bytes(1, b"cpu"), bytes(2, &quantity)].concat());
    let probe_port = [number(1, 1), bytes(3, b"http")].concat();
    let http_get = [bytes(1, b"/healthz"), bytes(2, &probe_port)].concat();
    let probe = [bytes(1, &bytes(2, &http_get)), number(2, 5)].concat();
    let container = [
        bytes(1, b"web"),
        bytes(6, &port),
        bytes(8, &limits),
        bytes(10, &probe),
        number(16, 0),
    ]
    .concat();
    let template = bytes(2, &bytes(2, &container));
    let time = [number(1, 1_767_225_600), number(2, 0)].concat();
    let label = [bytes(1, b"app"), bytes(2, b"web")].concat();
    let meta = [bytes(1, b"d"), bytes(8, &time), bytes(11, &label)].concat();
    let spec = [number(1, 3), bytes(3, &template)].concat();
    let mut object = decode(&body(
        "apps/v1",
        "Deployment",
        &[bytes(1, &meta), bytes(2, &spec)].concat(),
    ))
    .expect("decodes");
    typed(
        Struct::find("apps/v1.Deployment").expect("a type"),
        &mut object,
    )
    .expect("typed");
    assert_eq!(
        (&object["apiVersion"], &object["kind"]),
        (&json!("apps/v1"), &json!("Deployment"))
    );
    assert_eq!(
        object["metadata"],
        json!({"name": "d", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": "web"}})
    );
    assert_eq!(object["spec"]["replicas"], 3);
    assert_eq!(
        object["spec"]["template"]["spec"]["containers"],
        json!([{
            "name": "web",
            "ports": [{"name": "http", "containerPort": 80}],
            "resources": {"limits": {"cpu": "500m"}},
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http"}, "initialDelaySeconds": 5}
        }])
    );
}

#[test]
fn bytes_lists_and_negative_numbers_keep_their_values() {
    let entry = [bytes(1, b"k"), bytes(2, &[0, 255])].concat();
    let secret = decode(&body("v1", "Secret", &bytes(2, &entry))).expect("decodes");
    assert_eq!(secret["data"], json!({"k": "AP8="}));
    let options = decode(&body(
        "apps/v1",
        "DeleteOptions",
        &[number(1, -1), bytes(5, b"All")].concat(),
    ))
    .expect("decodes");
    assert_eq!(
        (&options["gracePeriodSeconds"], &options["dryRun"]),
        (&json!(-1), &json!(["All"]))
    );
}

#[test]
fn every_kind_that_clients_send_is_known() {
    for (api_version, kind) in [
        ("v1", "Binding"),
        ("v1", "Event"),
        ("v1", "Node"),
        ("coordination.k8s.io/v1", "Lease"),
        ("discovery.k8s.io/v1", "EndpointSlice"),
        ("authentication.k8s.io/v1", "TokenRequest"),
        ("authentication.k8s.io/v1", "TokenReview"),
        ("authorization.k8s.io/v1", "SubjectAccessReview"),
        ("autoscaling/v1", "Scale"),
        ("policy/v1", "Eviction"),
        ("events.k8s.io/v1", "Event"),
        ("rbac.authorization.k8s.io/v1", "Role"),
        ("meta.k8s.io/v1", "DeleteOptions"),
    ] {
        assert!(
            decode(&body(api_version, kind, b"")).is_ok(),
            "{api_version} {kind}"
        );
    }
    assert!(matches!(
        decode(&body("v1", "Nothing", b"")),
        Err(Error::UnknownType { .. })
    ));
    assert!(matches!(decode(b"{}"), Err(Error::Magic)));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(raw in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&body("v1", "Pod", &raw));
        let _ = decode(&[b"k8s\0".to_vec(), raw].concat());
    }
}
