//! What all kinds have in common, and what users see of each.

use api::apply::{Manager, apply, record_update};
use api::field::aggregate;
use api::schema::{Struct, decode};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::kind::Kind;
use super::kinds;

fn kind(name: &str) -> &'static Kind {
    kinds().iter().find(|k| k.kind == name).expect(name)
}

/// Decodes, defaults and prepares an object as a create does.
fn created(name: &str, mut object: Value) -> Value {
    let kind = kind(name);
    decode(Struct::find(kind.schema).expect(kind.schema), &mut object).expect("decodes");
    (kind.default)(&mut object);
    (kind.prepare_create)(&mut object);
    object
}

fn problems(name: &str, object: Value) -> String {
    aggregate(&(kind(name).validate)(&created(name, object)))
}

fn has_null(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.iter().any(has_null),
        Value::Object(map) => map.values().any(has_null),
        _ => false,
    }
}

fn container() -> Value {
    json!({"name": "web", "image": "nginx:1"})
}

fn pod(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"}, "spec": spec})
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": "d"}},
            "template": {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [container()]}}
        }
    })
}

#[test]
fn every_kind_is_consistent() {
    for kind in kinds() {
        assert!(
            Struct::find(kind.schema).is_some(),
            "{} has no schema {}",
            kind.kind,
            kind.schema
        );
        let empty = json!({"metadata": {"name": "x"}});
        let row = (kind.row)(&empty, jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(
            row.len(),
            kind.columns.len(),
            "{} shows as many cells as columns",
            kind.kind
        );
        let fields = (kind.selectable_fields)(&empty);
        assert!(
            fields.iter().any(|(name, _)| *name == "metadata.name"),
            "{}",
            kind.kind
        );
        assert_eq!(
            fields.iter().any(|(name, _)| *name == "metadata.namespace"),
            kind.namespaced,
            "{}",
            kind.kind
        );
        let mut once = empty.clone();
        (kind.default)(&mut once);
        let mut twice = once.clone();
        (kind.default)(&mut twice);
        assert_eq!(once, twice, "the defaults of {} are idempotent", kind.kind);
        assert!(
            !has_null(&once),
            "the defaults of {} leave no null: {once}",
            kind.kind
        );
        // Nothing panics on what has no form.
        for odd in [
            json!({}),
            json!({"metadata": 1, "spec": [], "status": "x"}),
            json!({"spec": {"ports": {}}}),
        ] {
            let _ = (kind.validate)(&odd);
            let _ = (kind.validate_update)(&odd, &empty);
            let _ = (kind.row)(&odd, jiff::Timestamp::UNIX_EPOCH);
        }
    }
}

#[test]
fn a_pod_gets_upstreams_defaults() {
    let mut wanted = pod(json!({
        "containers": [{
            "name": "web", "image": "nginx:1",
            "ports": [{"containerPort": 80, "protocol": "TCP"}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}},
            "livenessProbe": {
                "httpGet": {"path": "/", "port": 80, "scheme": "HTTP"},
                "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3
            },
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent"
        }],
        "volumes": [{"name": "s", "secret": {"secretName": "x", "defaultMode": 420}}, {"name": "e", "emptyDir": {}}],
        "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
        "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true
    }));
    wanted["status"] = json!({"phase": "Pending", "qosClass": "Guaranteed"});
    wanted["metadata"]["generation"] = 1.into();
    let given = pod(json!({
        "containers": [{
            "name": "web", "image": "nginx:1", "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1000m", "memory": "1024Mi"}},
            "livenessProbe": {"httpGet": {"port": 80}}
        }],
        "volumes": [{"name": "s", "secret": {"secretName": "x"}}, {"name": "e"}]
    }));
    assert_eq!(created("Pod", given), wanted);
}

#[test]
fn a_deployment_gets_upstreams_defaults() {
    let object = created("Deployment", deployment());
    let spec = &object["spec"];
    assert_eq!(spec["replicas"], 1);
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
    );
    assert_eq!(
        (
            &spec["revisionHistoryLimit"],
            &spec["progressDeadlineSeconds"]
        ),
        (&json!(10), &json!(600))
    );
    assert!(
        spec["template"]["spec"]["enableServiceLinks"].is_null(),
        "not frozen into the template"
    );
    assert_eq!(object["metadata"]["generation"], 1);
    assert!((kind("Deployment").validate)(&object).is_empty());
}

#[test]
fn a_service_gets_upstreams_defaults() {
    let service = json!({"metadata": {"name": "s", "namespace": "default"}, "spec": {"ports": [{"port": 80}]}});
    let object = created("Service", service);
    assert_eq!(
        object["spec"],
        json!({
            "ports": [{"protocol": "TCP", "port": 80, "targetPort": 80}],
            "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"
        })
    );
    assert!((kind("Service").validate)(&object).is_empty());
}

#[test]
fn common_mistakes_are_told_in_upstreams_words() {
    assert_eq!(
        problems("Pod", pod(json!({}))),
        "spec.containers: Required value"
    );
    let broken =
        json!({"containers": [{"image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]});
    assert_eq!(
        problems("Pod", pod(broken)),
        r#"[spec.containers[0].name: Required value, spec.containers[0].volumeMounts[0].name: Not found: "v"]"#
    );
    let twice = json!({"containers": [container(), container()], "restartPolicy": "Sometimes"});
    assert_eq!(
        problems("Pod", pod(twice)),
        r#"[spec.containers[1].name: Duplicate value: "web", spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"]"#
    );
    let mut greedy = container();
    greedy["resources"] = json!({"limits": {"cpu": "1"}, "requests": {"cpu": "2"}});
    assert_eq!(
        problems("Pod", pod(json!({"containers": [greedy]}))),
        r#"spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#
    );
    let mut stray = deployment();
    stray["spec"]["template"]["metadata"]["labels"] = json!({"app": "other"});
    assert_eq!(
        problems("Deployment", stray),
        r#"spec.template.metadata.labels: Invalid value: {"app":"other"}: `selector` does not match template `labels`"#
    );
    let mut bare = deployment();
    bare["spec"]["selector"] = Value::Null;
    assert_eq!(
        problems("Deployment", bare),
        "spec.selector: Required value"
    );
    let service = json!({"metadata": {"name": "s", "namespace": "default"}, "spec": {}});
    assert_eq!(problems("Service", service), "spec.ports: Required value");
}

#[test]
fn only_a_pods_images_and_the_like_may_change() {
    let old = created("Pod", pod(json!({"containers": [container()]})));
    let update = |change: fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new["spec"]);
        aggregate(&(kind("Pod").validate_update)(&new, &old))
    };
    assert_eq!(
        update(|spec| spec["containers"][0]["image"] = "nginx:2".into()),
        "[]"
    );
    assert_eq!(
        update(|spec| spec["tolerations"] = json!([{"operator": "Exists"}])),
        "[]"
    );
    assert!(
        update(|spec| spec["hostNetwork"] = true.into())
            .starts_with("spec: Forbidden: pod updates may not change")
    );
}

#[test]
fn a_deployments_selector_is_immutable() {
    let old = created("Deployment", deployment());
    let mut new = old.clone();
    new["spec"]["selector"]["matchLabels"]["tier"] = "x".into();
    assert_eq!(
        aggregate(&(kind("Deployment").validate_update)(&new, &old)),
        r#"spec.selector: Invalid value: {"matchLabels":{"app":"d","tier":"x"}}: field is immutable"#
    );
}

#[test]
fn generations_count_changes_of_the_spec() {
    let kind = kind("Deployment");
    let old = created("Deployment", deployment());
    let mut new = old.clone();
    new["status"] = json!({"replicas": 9});
    (kind.prepare_update)(&mut new, &old);
    assert_eq!(
        (&new["metadata"]["generation"], &new["status"]),
        (&json!(1), &json!({}))
    );
    new["spec"]["replicas"] = 2.into();
    (kind.prepare_update)(&mut new, &old);
    assert_eq!(new["metadata"]["generation"], 2);
    let mut status = old.clone();
    status["status"] = json!({"replicas": 1});
    status["spec"]["replicas"] = 7.into();
    (kind.prepare_status_update)(&mut status, &old);
    assert_eq!(
        (&status["spec"]["replicas"], &status["status"]["replicas"]),
        (&json!(1), &json!(1))
    );
}

#[test]
fn a_secrets_plain_data_is_encoded() {
    let secret =
        json!({"metadata": {"name": "s", "namespace": "default"}, "stringData": {"a": "b"}});
    let object = created("Secret", secret);
    assert_eq!(
        (&object["type"], &object["data"]),
        (&json!("Opaque"), &json!({"a": "Yg=="}))
    );
    assert!(object.get("stringData").is_none());
}

fn row(name: &str, object: Value) -> Vec<Value> {
    let now = api::time::parse("2026-01-01T00:10:00Z").expect("a time");
    let mut object = object;
    object["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    (kind(name).row)(&object, now)
}

#[test]
fn rows_read_as_upstream_prints_them() {
    let node = json!({
        "metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "x"}},
        "spec": {"unschedulable": true},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian"}
        }
    });
    assert_eq!(
        row("Node", node),
        [
            "n",
            "Ready,SchedulingDisabled",
            "control-plane,x",
            "10m",
            "v1.36.0",
            "10.0.0.1",
            "<none>",
            "Debian",
            "<unknown>",
            "<unknown>"
        ]
    );
    let service = json!({
        "metadata": {"name": "s"},
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.1"], "selector": {"a": "b"},
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]
        }
    });
    assert_eq!(
        row("Service", service),
        [
            "s",
            "LoadBalancer",
            "10.96.0.1",
            "<pending>",
            "80:30080/TCP,53/UDP",
            "10m",
            "a=b"
        ]
    );
    let mut object = deployment();
    object["spec"]["replicas"] = 3.into();
    object["status"] = json!({"readyReplicas": 1, "updatedReplicas": 2});
    let wanted = json!(["d", "1/3", 2, 0, "10m", "web", "nginx:1", "app=d"]);
    assert_eq!(Value::from(row("Deployment", object)), wanted);
    let event = json!({
        "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p"}, "type": "Normal", "reason": "Pulled",
        "message": "done", "count": 2, "lastTimestamp": "2026-01-01T00:09:00Z", "firstTimestamp": "2026-01-01T00:08:00Z",
        "source": {"component": "kubelet", "host": "n"}
    });
    let wanted = json!([
        "60s",
        "Normal",
        "Pulled",
        "pod/p",
        "",
        "kubelet, n",
        "done",
        "2m",
        2,
        "e"
    ]);
    assert_eq!(Value::from(row("Event", event)), wanted);
    let slice = json!({
        "metadata": {"name": "x"}, "addressType": "IPv4", "ports": [{"port": 80}],
        "endpoints": [{"addresses": ["1"]}, {"addresses": ["2"]}, {"addresses": ["3"]}, {"addresses": ["4"]}]
    });
    assert_eq!(
        row("EndpointSlice", slice),
        ["x", "IPv4", "80", "1,2,3 + 1 more...", "10m"]
    );
}

#[test]
fn a_services_type_takes_its_own_fields_along_when_it_goes() {
    let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
    let old = created(
        "Service",
        json!({"metadata": {"name": "s", "namespace": "default"}, "spec": spec}),
    );
    let mut new = old.clone();
    new["spec"]["type"] = "ClusterIP".into();
    (kind("Service").default)(&mut new);
    (kind("Service").prepare_update)(&mut new, &old);
    assert!(new["spec"].get("externalTrafficPolicy").is_none());
    assert!((kind("Service").validate)(&new).is_empty());
}

/// Objects with something in most of the places that rules and defaults look at.
fn samples() -> Vec<(&'static str, Value)> {
    let spec = json!({
        "containers": [{
            "name": "a", "image": "i:1", "command": ["x"], "ports": [{"name": "http", "containerPort": 80, "hostPort": 80}],
            "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "envFrom": [{"configMapRef": {"name": "c"}}],
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}},
            "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "s"}],
            "livenessProbe": {"httpGet": {"port": "http", "httpHeaders": [{"name": "X", "value": "y"}]}},
            "lifecycle": {"preStop": {"exec": {"command": ["x"]}}},
            "securityContext": {"runAsUser": 1, "seccompProfile": {"type": "RuntimeDefault"}}
        }],
        "initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always"}],
        "volumes": [
            {"name": "v", "projected": {"sources": [{"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "metadata.uid"}}]}}]}},
            {"name": "w", "configMap": {"name": "c", "items": [{"key": "k", "path": "p"}]}}
        ],
        "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}]}}},
        "dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "x"}]}, "securityContext": {"sysctls": [{"name": "a", "value": "b"}]}
    });
    let mut status = pod(spec.clone());
    status["status"] = json!({
        "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "a", "restartCount": 1, "state": {"waiting": {"reason": "x"}}, "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:00:00Z"}}}]
    });
    let mut workload = deployment();
    workload["spec"]["template"]["spec"] = spec;
    let meta = json!({"name": "n", "namespace": "default", "labels": {"a": "b"}, "ownerReferences": [{"apiVersion": "v1", "kind": "K", "name": "n", "uid": "u"}], "finalizers": ["a/b"]});
    vec![
        ("Pod", status),
        ("Deployment", workload),
        (
            "Service",
            json!({"metadata": meta, "spec": {"type": "NodePort", "clusterIPs": ["10.0.0.1"], "ports": [{"name": "a", "port": 80, "nodePort": 30000, "targetPort": "http"}], "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}}}),
        ),
        (
            "Node",
            json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "a", "effect": "NoSchedule"}], "podCIDRs": ["10.0.0.0/24"]}, "status": {"capacity": {"cpu": "1"}, "addresses": [{"type": "InternalIP", "address": "1"}]}}),
        ),
        (
            "EndpointSlice",
            json!({"metadata": meta, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}], "ports": [{"name": "a", "port": 80}]}),
        ),
        (
            "Event",
            json!({"metadata": meta, "involvedObject": {"kind": "Pod", "namespace": "default"}, "series": {"count": 2}, "count": 1}),
        ),
        (
            "Secret",
            json!({"metadata": meta, "data": {"a": "YQ=="}, "stringData": {"b": "c"}, "immutable": true}),
        ),
    ]
}

/// The `at`-th of all places in a value, counted from the root.
fn place(value: &mut Value, at: usize) -> Option<&mut Value> {
    fn walk<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
        if *left == 0 {
            return Some(value);
        }
        *left -= 1;
        match value {
            Value::Object(map) => map.values_mut().find_map(|v| walk(v, left)),
            Value::Array(list) => list.iter_mut().find_map(|v| walk(v, left)),
            _ => None,
        }
    }
    let mut left = at;
    walk(value, &mut left)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn nothing_that_a_client_sends_makes_a_rule_panic(
        sample in 0..7usize,
        changes in prop::collection::vec((1..160usize, 0..11usize), 1..4),
    ) {
        let (name, original) = samples().swap_remove(sample);
        let odd = [
            json!(null), json!({}), json!([]), json!(""), json!("x"), json!("1Gi"), json!(0), json!(-1), json!(65536), json!(true), json!([{}]),
        ];
        let mut object = original.clone();
        for (at, value) in changes {
            if let Some(place) = place(&mut object, at) {
                *place = odd[value].clone();
            }
        }
        let kind = kind(name);
        let ty = Struct::find(kind.schema).expect(kind.schema);
        // What has a wrong type goes no further.
        if decode(ty, &mut object).is_ok() {
            let old = created(name, original);
            (kind.default)(&mut object);
            let mut new = object.clone();
            (kind.prepare_create)(&mut new);
            let _ = aggregate(&(kind.validate)(&new));
            let mut changed = object.clone();
            (kind.prepare_update)(&mut changed, &old);
            let _ = aggregate(&(kind.validate_update)(&changed, &old));
            let mut status = object.clone();
            (kind.prepare_status_update)(&mut status, &old);
            prop_assert_eq!((kind.row)(&object, jiff::Timestamp::UNIX_EPOCH).len(), kind.columns.len());
            let manager = Manager { name: "m", api_version: "v1", subresource: "", ignored: &[], time: "2026-01-01T00:00:00Z" };
            record_update(ty, &mut changed, &old, &manager);
            let _ = apply(ty, &changed, &object, &manager, true);
            let _ = api::patch::strategic(ty, &old, &object);
        }
    }
}
