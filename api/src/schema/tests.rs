use serde_json::{Value, json};

use super::{Struct, Topology, Type, all, decode};

fn decoded(ty: &str, mut value: Value) -> (Value, Vec<String>) {
    let unknown = decode(Struct::find(ty).expect(ty), &mut value).expect("decodes");
    (value, unknown)
}

#[test]
fn the_tables_are_whole() {
    assert!(all().is_sorted_by_key(|s| s.name));
    for ty in all() {
        let mut names = Vec::new();
        ty.each_field(&mut |field| {
            assert!(
                !names.contains(&field.name),
                "{}.{} appears twice",
                ty.name,
                field.name
            );
            names.push(field.name);
            if let (Topology::Map(keys), Type::List(Type::Struct(item))) =
                (field.topology, field.ty)
            {
                for key in keys {
                    assert!(
                        item.field(key).is_some(),
                        "{}.{} has no key {key}",
                        ty.name,
                        field.name
                    );
                }
            }
        });
        let mut numbers: Vec<_> = ty
            .fields
            .iter()
            .map(|f| f.number)
            .filter(|n| *n != 0)
            .collect();
        numbers.sort_unstable();
        assert!(
            numbers.windows(2).all(|w| w[0] != w[1]),
            "{} uses a number twice",
            ty.name
        );
    }
}

#[test]
fn a_pod_takes_the_form_that_upstream_gives_it() {
    let (pod, unknown) = decoded(
        "core/v1.Pod",
        json!({
            "spec": {
                "containers": [{
                    "name": "a", "image": "i", "command": [], "bogus": 1, "tty": false,
                    "resources": {"limits": {"memory": "1024Mi", "cpu": 0.5}}
                }],
                "volumes": [{"name": "v", "emptyDir": {}}],
                "nodeName": null, "hostIPC": false
            },
            "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "labels": {}, "creationTimestamp": null}, "what": {}
        }),
    );
    assert_eq!(
        unknown,
        [
            r#"unknown field "spec.containers[0].bogus""#,
            r#"unknown field "what""#
        ]
    );
    assert_eq!(
        pod.to_string(),
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {
                "volumes": [{"name": "v", "emptyDir": {}}],
                "containers": [{"name": "a", "image": "i", "resources": {"limits": {"memory": "1Gi", "cpu": "500m"}}}]
            },
            "status": {}
        })
        .to_string()
    );
}

#[test]
fn a_wrong_type_is_told_in_upstreams_words() {
    let error = |ty: &str, mut value: Value| {
        decode(Struct::find(ty).expect(ty), &mut value)
            .expect_err("refused")
            .to_string()
    };
    assert_eq!(
        error("apps/v1.Deployment", json!({"spec": {"replicas": "three"}})),
        "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
    );
    assert_eq!(
        error(
            "core/v1.Pod",
            json!({"spec": {"containers": [{"ports": {}}]}})
        ),
        "json: cannot unmarshal object into Go struct field Container.spec.containers.ports of type []v1.ContainerPort"
    );
    assert!(
        error("core/v1.Pod", json!({"spec": {"overhead": {"cpu": "1x"}}}))
            .starts_with("quantities must match")
    );
}

#[test]
fn a_time_that_is_not_set_is_null_as_upstream_writes_it() {
    let (pod, _) = decoded(
        "core/v1.Pod",
        json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    assert_eq!(
        pod["status"]["conditions"][0],
        json!({"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": null})
    );
}
