use proptest::prelude::*;
use serde_json::{Value, json};

use super::set::Set;
use super::{Manager, apply, record_update};
use crate::schema::Struct;

const EARLY: &str = "2026-01-01T00:00:00Z";
const LATE: &str = "2026-01-02T00:00:00Z";

fn ty() -> &'static Struct {
    Struct::find("apps/v1.Deployment").expect("a type")
}

fn manager<'a>(name: &'a str, time: &'a str) -> Manager<'a> {
    Manager {
        name,
        api_version: "apps/v1",
        subresource: "",
        ignored: &["status"],
        time,
    }
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
}

fn containers(list: Value) -> Value {
    deployment(json!({"template": {"spec": {"containers": list}}}))
}

/// `(manager, operation, fieldsV1)` of each entry.
fn owners(object: &Value) -> Vec<(String, String, Value)> {
    let entries = object["metadata"]["managedFields"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    entries
        .iter()
        .map(|e| {
            (
                text(&e["manager"]),
                text(&e["operation"]),
                e["fieldsV1"].clone(),
            )
        })
        .collect()
}

#[test]
fn a_create_owns_what_it_states() {
    let mut object = deployment(
        json!({"replicas": 1, "template": {"spec": {"containers": [{"name": "a", "image": "i"}]}}}),
    );
    object["metadata"]["labels"] = json!({"app": "x"});
    object["status"] = json!({"replicas": 3});
    record_update(ty(), &mut object, &Value::Null, &manager("kubectl", EARLY));
    assert_eq!(
        owners(&object),
        [(
            "kubectl".into(),
            "Update".into(),
            json!({
                "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {
                    "f:replicas": {},
                    "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}, "f:name": {}}}}}
                }
            })
        )]
    );
}

#[test]
fn an_update_takes_what_it_changes_from_others() {
    let mut first = deployment(json!({"replicas": 1, "paused": true}));
    record_update(ty(), &mut first, &Value::Null, &manager("a", EARLY));
    let mut second = first.clone();
    second["spec"]["replicas"] = 2.into();
    record_update(ty(), &mut second, &first, &manager("b", LATE));
    assert_eq!(
        owners(&second),
        [
            (
                "a".into(),
                "Update".into(),
                json!({"f:spec": {"f:paused": {}}})
            ),
            (
                "b".into(),
                "Update".into(),
                json!({"f:spec": {"f:replicas": {}}})
            ),
        ]
    );
}

#[test]
fn a_write_may_change_the_record_but_not_through_a_subresource() {
    let mut old = deployment(json!({"replicas": 1}));
    record_update(
        ty(),
        &mut old,
        &Value::Null,
        &manager("kubectl-client-side-apply", EARLY),
    );
    let mut new = old.clone();
    new["metadata"]["managedFields"][0]["manager"] = "kubectl".into();
    new["metadata"]["managedFields"][0]["operation"] = "Apply".into();
    let mut through_status = new.clone();
    record_update(ty(), &mut new, &old, &manager("x", LATE));
    assert_eq!(
        owners(&new),
        [(
            "kubectl".into(),
            "Apply".into(),
            json!({"f:spec": {"f:replicas": {}}})
        )]
    );
    let status = Manager {
        subresource: "status",
        ..manager("x", LATE)
    };
    record_update(ty(), &mut through_status, &old, &status);
    assert_eq!(owners(&through_status), owners(&old));
    let mut forgotten = old.clone();
    forgotten["metadata"]["managedFields"] = json!([{}]);
    record_update(ty(), &mut forgotten, &old, &manager("x", LATE));
    assert!(forgotten["metadata"].get("managedFields").is_none());
}

#[test]
fn an_apply_removes_what_it_states_no_more() {
    let one =
        containers(json!([{"name": "a", "image": "1", "tty": true}, {"name": "b", "image": "1"}]));
    let live = apply(ty(), &Value::Null, &one, &manager("m", EARLY), false).expect("applies");
    let two = containers(json!([{"name": "a", "image": "2"}]));
    let live = apply(ty(), &live, &two, &manager("m", LATE), false).expect("applies");
    assert_eq!(live["spec"], two["spec"]);
}

#[test]
fn what_another_manager_owns_stays_when_an_applier_lets_go() {
    let live = apply(
        ty(),
        &Value::Null,
        &deployment(json!({"replicas": 3, "paused": true})),
        &manager("a", EARLY),
        false,
    );
    let live = live.expect("applies");
    let both = apply(
        ty(),
        &live,
        &deployment(json!({"replicas": 3})),
        &manager("b", EARLY),
        false,
    )
    .expect("agrees");
    let nothing = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}});
    let left = apply(ty(), &both, &nothing, &manager("a", LATE), false).expect("applies");
    assert_eq!(left["spec"], json!({"replicas": 3}));
    assert_eq!(
        owners(&left),
        [(
            "b".into(),
            "Apply".into(),
            json!({"f:spec": {"f:replicas": {}}})
        )]
    );
}

#[test]
fn a_conflict_names_the_manager_and_the_field_and_can_be_forced() {
    let mut live = deployment(json!({"replicas": 1}));
    record_update(
        ty(),
        &mut live,
        &Value::Null,
        &manager("kubectl-scale", EARLY),
    );
    let config = deployment(json!({"replicas": 5}));
    let conflict = apply(ty(), &live, &config, &manager("me", LATE), false).expect_err("conflicts");
    assert_eq!(
        conflict.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-scale\" using apps/v1: .spec.replicas"
    );
    let forced = apply(ty(), &live, &config, &manager("me", LATE), true).expect("forced");
    assert_eq!(forced["spec"]["replicas"], 5);
    assert_eq!(
        owners(&forced),
        [(
            "me".into(),
            "Apply".into(),
            json!({"f:spec": {"f:replicas": {}}})
        )]
    );
}

#[test]
fn several_conflicts_are_listed_by_manager() {
    let mut live = containers(json!([{"name": "a", "image": "1"}]));
    live["spec"]["replicas"] = 1.into();
    record_update(ty(), &mut live, &Value::Null, &manager("x", EARLY));
    let mut config = containers(json!([{"name": "a", "image": "2"}]));
    config["spec"]["replicas"] = 2.into();
    let conflict = apply(ty(), &live, &config, &manager("me", LATE), false).expect_err("conflicts");
    assert_eq!(
        conflict.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"x\" using apps/v1:\n- .spec.replicas\n- .spec.template.spec.containers[name=\"a\"].image"
    );
}

#[test]
fn applying_the_same_again_changes_nothing_not_even_the_time() {
    let config = containers(json!([{"name": "a", "image": "1", "ports": [{"containerPort": 80}]}]));
    let live = apply(ty(), &Value::Null, &config, &manager("m", EARLY), false).expect("applies");
    assert_eq!(
        apply(ty(), &live, &config, &manager("m", LATE), false).expect("applies"),
        live
    );
}

#[test]
fn list_items_take_the_configurations_order_and_others_keep_their_place() {
    let mut live = containers(json!([{"name": "x"}, {"name": "a"}, {"name": "b"}]));
    record_update(ty(), &mut live, &Value::Null, &manager("u", EARLY));
    let config = containers(json!([{"name": "b"}, {"name": "new"}, {"name": "a"}]));
    let merged = apply(ty(), &live, &config, &manager("m", LATE), false).expect("applies");
    let names: Vec<&str> = merged["spec"]["template"]["spec"]["containers"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    assert_eq!(names, ["x", "b", "new", "a"]);
}

#[test]
fn an_absent_protocol_is_the_default_one() {
    let ports = |list: Value| containers(json!([{"name": "a", "ports": list}]));
    let mut live = ports(json!([{"containerPort": 80, "protocol": "TCP"}]));
    record_update(ty(), &mut live, &Value::Null, &manager("u", EARLY));
    let merged = apply(
        ty(),
        &live,
        &ports(json!([{"containerPort": 80}])),
        &manager("m", LATE),
        false,
    )
    .expect("applies");
    let list = &merged["spec"]["template"]["spec"]["containers"][0]["ports"];
    assert_eq!(list, &json!([{"containerPort": 80, "protocol": "TCP"}]));
}

#[test]
fn a_quantity_in_another_form_is_no_change() {
    let limits =
        |cpu: &str| containers(json!([{"name": "a", "resources": {"limits": {"cpu": cpu}}}]));
    let mut live = limits("1");
    record_update(ty(), &mut live, &Value::Null, &manager("u", EARLY));
    assert!(apply(ty(), &live, &limits("1000m"), &manager("m", LATE), false).is_ok());
}

#[test]
fn an_atomic_list_is_replaced_and_owned_whole() {
    let args = |list: Value| containers(json!([{"name": "a", "args": list}]));
    let live = apply(
        ty(),
        &Value::Null,
        &args(json!(["1", "2"])),
        &manager("m", EARLY),
        false,
    )
    .expect("applies");
    let live =
        apply(ty(), &live, &args(json!(["3"])), &manager("m", LATE), false).expect("applies");
    assert_eq!(
        live["spec"]["template"]["spec"]["containers"][0]["args"],
        json!(["3"])
    );
}

fn field_tree() -> impl Strategy<Value = Value> {
    let leaf = Just(json!({}));
    leaf.prop_recursive(3, 12, 3, |inner| {
        let key = prop::sample::select(vec!["f:a", "f:b", "k:{\"name\":\"x\"}", "v:\"y\"", "."]);
        prop::collection::btree_map(key, inner, 1..4).prop_map(|map| {
            let entries = map
                .into_iter()
                .map(|(k, v)| (k.to_owned(), if k == "." { json!({}) } else { v }));
            Value::Object(entries.collect())
        })
    })
}

proptest! {
    #[test]
    fn field_sets_survive_their_json_form(tree in field_tree()) {
        // The root is never a member: it has no place in the JSON form.
        let set = Set { member: false, ..Set::from_fields_v1(&tree) };
        prop_assert_eq!(Set::from_fields_v1(&set.to_fields_v1()).paths(), set.paths());
    }

    #[test]
    fn set_algebra_holds(a in field_tree(), b in field_tree()) {
        let (a, b) = (Set::from_fields_v1(&a), Set::from_fields_v1(&b));
        let union = a.union(&b);
        let parts = a.difference(&b).union(&a.intersection(&b));
        prop_assert_eq!(parts.paths(), a.paths());
        prop_assert!(a.difference(&union).is_empty());
        prop_assert_eq!(union.paths(), b.union(&a).paths());
    }

    #[test]
    fn an_applier_owns_exactly_what_it_states_last(
        first in prop::collection::btree_map("[a-c]", "[x-z]", 0..4),
        second in prop::collection::btree_map("[a-c]", "[x-z]", 0..4),
    ) {
        let config = |labels: &std::collections::BTreeMap<String, String>| {
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": labels}})
        };
        let live = apply(ty(), &Value::Null, &config(&first), &manager("m", EARLY), false).unwrap();
        let live = apply(ty(), &live, &config(&second), &manager("m", LATE), false).unwrap();
        let labels = live["metadata"].get("labels").cloned().unwrap_or_else(|| json!({}));
        prop_assert_eq!(labels, json!(second));
    }
}
