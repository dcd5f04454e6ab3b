//! Reading one static pod's manifest.

use k8s_openapi::api::core::v1::{Pod, Toleration};

use crate::pod::{ANNOTATION_HASH, ANNOTATION_SEEN, ANNOTATION_SOURCE};

/// A file that isn't a pod.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no YAML or JSON of a pod's form.
    #[error("parse pod manifest: {0}")]
    Parse(String),
    /// It is something else.
    #[error("manifest is a {0}, not a v1 Pod")]
    Kind(String),
    /// It has no name or no containers.
    #[error("manifest has no {0}")]
    Missing(&'static str),
}

/// Reads a manifest (YAML, of which JSON is a part) as a static pod of `node`. Its UID is a digest of its content
/// and place, so that a changed file is another pod.
pub fn parse(text: &str, path: &str, node: &str, now: &str) -> Result<Pod, Error> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let value: serde_json::Value = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| Error::Parse(error.to_string()))?;
    let kind = value
        .get("kind")
        .and_then(|k| k.as_str())
        .unwrap_or_default();
    let version = value
        .get("apiVersion")
        .and_then(|k| k.as_str())
        .unwrap_or_default();
    if kind != "Pod" || version != "v1" {
        return Err(Error::Kind(format!("{version} {kind}")));
    }
    let hash = digest(&[&value.to_string(), path, node]);
    let mut pod: Pod =
        serde_json::from_value(value).map_err(|error| Error::Parse(error.to_string()))?;
    let name = pod
        .metadata
        .name
        .take()
        .filter(|n| !n.is_empty())
        .ok_or(Error::Missing("metadata.name"))?;
    let spec = pod
        .spec
        .as_mut()
        .filter(|s| !s.containers.is_empty())
        .ok_or(Error::Missing("spec.containers"))?;
    spec.node_name = Some(node.to_owned());
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    spec.enable_service_links.get_or_insert(true);
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.security_context.get_or_insert_default();
    spec.scheduler_name
        .get_or_insert_with(|| "default-scheduler".into());
    // No taint drives away what the API server can't place elsewhere.
    let tolerations = spec.tolerations.get_or_insert_default();
    tolerations.push(Toleration {
        operator: Some("Exists".into()),
        effect: Some("NoExecute".into()),
        ..Toleration::default()
    });
    let meta = &mut pod.metadata;
    meta.name = Some(format!("{name}-{}", node.to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".into());
    meta.uid = Some(hash.clone());
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(ANNOTATION_HASH.into(), hash);
    annotations.insert(ANNOTATION_SOURCE.into(), "file".into());
    annotations.insert(ANNOTATION_SEEN.into(), now.into());
    Ok(pod)
}

/// 128 bits of FNV-1a over the parts: stable between versions of this program, which the standard library's is not.
fn digest(parts: &[&str]) -> String {
    let mut hash: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        hash = (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
    }
    format!("{hash:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: c, image: i}]\n  volumes: [{name: v, configMap: {name: m, defaultMode: 0644}}]\n";

    #[test]
    fn a_static_pod_is_named_after_its_node_and_known_by_its_content() {
        let pod = parse(TEXT, "/p", "Node1", "now").expect("a pod");
        assert_eq!(pod.metadata.name.as_deref(), Some("web-node1"));
        let volumes = pod
            .spec
            .as_ref()
            .and_then(|s| s.volumes.clone())
            .expect("volumes");
        assert_eq!(
            volumes[0].config_map.as_ref().and_then(|c| c.default_mode),
            Some(0o644)
        );
        let other =
            parse(&TEXT.replace("image: i", "image: j"), "/p", "Node1", "now").expect("a pod");
        assert_ne!(pod.metadata.uid, other.metadata.uid);
        assert_eq!(
            pod.metadata.uid,
            parse(TEXT, "/p", "Node1", "later")
                .expect("a pod")
                .metadata
                .uid
        );
    }

    #[test]
    fn what_is_no_pod_is_refused() {
        assert!(matches!(
            parse("apiVersion: v1\nkind: Service\n", "/p", "n", ""),
            Err(Error::Kind(_))
        ));
        assert!(matches!(parse("{{", "/p", "n", ""), Err(Error::Parse(_))));
    }
}
