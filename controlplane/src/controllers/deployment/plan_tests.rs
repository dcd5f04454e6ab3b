use super::*;

fn deployment(replicas: i32, image: &str) -> Deployment {
    serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "u", "generation": 1 },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
            "template": template(image, None),
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } } },
    }))
    .expect("a deployment")
}

fn template(image: &str, hash: Option<&str>) -> Value {
    let mut template = json!({ "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": image }] } });
    if let Some(hash) = hash {
        template["metadata"]["labels"][TEMPLATE_HASH] = json!(hash);
    }
    template
}

fn set(image: &str, size: i32, available: i32, desired: i32) -> Arc<ReplicaSet> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": { "name": format!("web-{image}"), "namespace": "default",
                "annotations": { REVISION: "1", DESIRED: desired.to_string(), MAX: (desired + 1).to_string() } },
            "spec": { "replicas": size, "template": template(image, Some(image)) },
            "status": { "replicas": size, "availableReplicas": available, "readyReplicas": available },
        }))
        .expect("a set"),
    )
}

fn sizes(plan: &Plan) -> Vec<(String, i32)> {
    plan.steps
        .iter()
        .filter_map(|step| match step {
            Step::Scale { set, to, .. } => Some((name(set), *to)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_new_template_gets_a_set_as_large_as_the_surge_allows() {
    let plan = plan(&deployment(3, "b"), &[set("a", 3, 3, 3)], false);
    let Some(Step::Create { set }) = plan.steps.first() else {
        panic!("{plan:?}")
    };
    assert_eq!(set["spec"]["replicas"], 1);
    assert_eq!(set["metadata"]["annotations"][REVISION], "2");
    assert!(set["spec"]["selector"]["matchLabels"][TEMPLATE_HASH].is_string());
}

#[test]
fn old_pods_go_only_when_new_ones_are_available() {
    let waiting = plan(
        &deployment(3, "b"),
        &[set("a", 3, 3, 3), set("b", 1, 0, 3)],
        false,
    );
    assert_eq!(sizes(&waiting), []);
    let ready = plan(
        &deployment(3, "b"),
        &[set("a", 3, 3, 3), set("b", 1, 1, 3)],
        false,
    );
    assert_eq!(sizes(&ready), [("web-a".to_owned(), 2)]);
}

#[test]
fn broken_old_pods_go_first() {
    let plan = plan(
        &deployment(3, "b"),
        &[set("a", 3, 1, 3), set("b", 1, 1, 3)],
        false,
    );
    assert_eq!(
        sizes(&plan),
        [("web-a".to_owned(), 2)],
        "availability stays at 2 of 3, no more may go"
    );
}

#[test]
fn a_changed_number_scales_the_one_set() {
    assert_eq!(
        sizes(&plan(&deployment(5, "a"), &[set("a", 3, 3, 3)], false)),
        [("web-a".to_owned(), 5)]
    );
}

#[test]
fn a_changed_number_in_the_middle_of_a_rollout_is_shared() {
    let plan = plan(
        &deployment(10, "b"),
        &[set("a", 4, 4, 5), set("b", 2, 2, 5)],
        false,
    );
    let total: i32 = sizes(&plan).iter().map(|(_, size)| size).sum();
    assert_eq!(total, 11, "{:?}", sizes(&plan));
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut wanted = deployment(2, "b");
    wanted.spec.strategy.type_ = Some("Recreate".to_owned());
    assert_eq!(
        sizes(&plan(&wanted, &[set("a", 2, 2, 2)], true)),
        [("web-a".to_owned(), 0)]
    );
    assert!(plan(&wanted, &[set("a", 0, 0, 2)], true).steps.is_empty());
    assert!(matches!(
        plan(&wanted, &[set("a", 0, 0, 2)], false).steps.first(),
        Some(Step::Create { .. })
    ));
}

#[test]
fn percentages_round_up_for_surge_and_down_for_unavailable() {
    let mut wanted = deployment(5, "a");
    wanted.spec.strategy.rolling_update = Default::default();
    let bounds = Bounds::of(&wanted);
    assert_eq!((bounds.surge, bounds.unavailable), (2, 1));
}

#[test]
fn a_rollout_never_breaks_its_bounds_and_ends() {
    for (replicas, surge, unavailable) in [(3, 1, 0), (3, 0, 1), (5, 2, 2), (1, 1, 0), (10, 3, 2)] {
        let mut wanted = deployment(replicas, "b");
        wanted.spec.strategy.rolling_update.max_surge = Some(IntOrString::Int(surge));
        wanted.spec.strategy.rolling_update.max_unavailable = Some(IntOrString::Int(unavailable));
        let (mut a, mut b) = (replicas, 0);
        for _ in 0..100 {
            let (old, new) = (set("a", a, a, replicas), set("b", b, b, replicas));
            for (name, to) in sizes(&plan(&wanted, &[old, new], false)) {
                if name == "web-a" { a = to } else { b = to }
            }
            assert!(
                a + b <= replicas + surge && a + b >= replicas - unavailable,
                "{a} old and {b} new of {replicas}"
            );
        }
        assert_eq!((a, b), (0, replicas));
    }
}

#[test]
fn the_hash_ignores_the_order_of_fields_and_its_own_label() {
    let one = template_hash(&json!({ "a": 1, "b": [1, 2] }), 0);
    assert_eq!(one, template_hash(&json!({ "b": [1, 2], "a": 1 }), 0));
    assert_ne!(one, template_hash(&json!({ "a": 1, "b": [2, 1] }), 0));
    assert_ne!(one, template_hash(&json!({ "a": 1, "b": [1, 2] }), 1));
    assert_eq!(
        without_hash(&template("a", Some("x"))),
        without_hash(&template("a", None))
    );
}
