use proptest::prelude::*;
use serde_json::{Value, json};

use super::{PatchError, strategic};
use crate::schema::Struct;

fn patched(ty: &str, original: Value, patch: Value) -> Value {
    strategic(Struct::find(ty).expect(ty), &original, &patch).expect("applies")
}

fn pod(containers: Value) -> Value {
    json!({"spec": {"containers": containers}})
}

#[test]
fn containers_merge_by_name() {
    let original =
        pod(json!([{"name": "a", "image": "1", "tty": true}, {"name": "b", "image": "1"}]));
    let patch = pod(json!([{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]));
    let wanted = pod(
        json!([{"name": "a", "image": "1", "tty": true}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]),
    );
    assert_eq!(patched("core/v1.Pod", original, patch), wanted);
}

#[test]
fn a_list_item_is_deleted_or_the_list_replaced_by_directive() {
    let original = pod(json!([{"name": "a"}, {"name": "b"}]));
    let delete = pod(json!([{"name": "a", "$patch": "delete"}, {"name": "x", "$patch": "delete"}]));
    assert_eq!(
        patched("core/v1.Pod", original.clone(), delete),
        pod(json!([{"name": "b"}]))
    );
    let replace = pod(json!([{"name": "z"}, {"$patch": "replace"}]));
    assert_eq!(
        patched("core/v1.Pod", original, replace),
        pod(json!([{"name": "z"}]))
    );
}

#[test]
fn objects_are_replaced_deleted_and_pruned_by_directive() {
    let original =
        json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let retain = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(
        patched("apps/v1.Deployment", original.clone(), retain),
        json!({"spec": {"strategy": {"type": "Recreate"}}})
    );
    let replace = json!({"spec": {"strategy": {"$patch": "replace", "type": "Recreate"}}});
    assert_eq!(
        patched("apps/v1.Deployment", original.clone(), replace),
        json!({"spec": {"strategy": {"type": "Recreate"}}})
    );
    let null = json!({"spec": {"strategy": {"rollingUpdate": null}}});
    assert_eq!(
        patched("apps/v1.Deployment", original, null),
        json!({"spec": {"strategy": {"type": "RollingUpdate"}}})
    );
}

#[test]
fn primitive_lists_with_the_merge_strategy_are_sets() {
    let original = json!({"metadata": {"finalizers": ["a", "b"]}});
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["b", "c"]}});
    assert_eq!(
        patched("core/v1.Pod", original, patch),
        json!({"metadata": {"finalizers": ["b", "c"]}})
    );
}

#[test]
fn lists_without_a_merge_key_are_replaced() {
    let original = pod(json!([{"name": "a", "command": ["x", "y"]}]));
    let patch = pod(json!([{"name": "a", "command": ["z"]}]));
    assert_eq!(patched("core/v1.Pod", original, patch.clone()), patch);
}

#[test]
fn the_element_order_is_the_patchs_and_others_keep_their_place() {
    let original = pod(json!([{"name": "a"}, {"name": "server"}, {"name": "b"}]));
    let patch = json!({"spec": {
        "$setElementOrder/containers": [{"name": "b"}, {"name": "new"}, {"name": "a"}],
        "containers": [{"name": "new"}]
    }});
    let names: Vec<Value> = patched("core/v1.Pod", original, patch)["spec"]["containers"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|c| c["name"].clone())
        .collect();
    assert_eq!(names, ["server", "b", "new", "a"]);
}

#[test]
fn an_item_without_its_merge_key_is_refused() {
    let patch = pod(json!([{"image": "x"}]));
    let result = strategic(
        Struct::find("core/v1.Pod").expect("a type"),
        &pod(json!([])),
        &patch,
    );
    assert!(matches!(result, Err(PatchError::NoMergeKey { key, .. }) if key == "name"));
}

#[test]
fn what_is_new_comes_without_nulls_and_directives() {
    let patch = json!({"spec": {"containers": [{"name": "a", "image": null, "env": [{"name": "x", "$patch": "delete"}]}]}});
    assert_eq!(
        patched("core/v1.Pod", json!({}), patch),
        pod(json!([{"name": "a", "env": []}]))
    );
}

proptest! {
    #[test]
    fn a_patch_without_directives_is_idempotent(
        old in prop::collection::btree_map("[a-d]", "[x-z]", 0..4),
        new in prop::collection::btree_map("[a-d]", "[x-z]", 0..4),
        labels in prop::collection::btree_map("[a-d]", prop::option::of("[x-z]"), 0..4),
    ) {
        let containers = |map: &std::collections::BTreeMap<String, String>| {
            map.iter().map(|(name, image)| json!({"name": name, "image": image})).collect::<Vec<_>>()
        };
        let original = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"containers": containers(&old)}});
        let patch = json!({"metadata": {"labels": labels}, "spec": {"containers": containers(&new)}});
        let once = patched("core/v1.Pod", original, patch.clone());
        prop_assert_eq!(patched("core/v1.Pod", once.clone(), patch), once);
    }
}
