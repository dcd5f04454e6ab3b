//! A container's environment.
//!
//! Upstream's order of precedence: service variables, then `envFrom` in its order, then `env` in its order; a
//! value may refer to what stands before it.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret};

use super::expand::expand;
use crate::fields::{self, NodeFacts};

/// An environment that can't be made (yet). The container waits with reason CreateContainerConfigError.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An object that isn't there.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A key that the object doesn't have.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A field that has no value.
    #[error(transparent)]
    Field(#[from] fields::Error),
}

/// The objects that an environment may refer to, as they are now. A missing entry: not looked up; `None`: not there.
#[derive(Default)]
pub struct Sources<'a> {
    /// ConfigMaps of the pod's namespace, by name.
    pub config_maps: HashMap<String, std::sync::Arc<ConfigMap>>,
    /// Secrets of the pod's namespace, by name.
    pub secrets: HashMap<String, std::sync::Arc<Secret>>,
    /// Service variables.
    pub services: Vec<(String, String)>,
    /// The pod's addresses.
    pub pod_ips: &'a [String],
}

/// Makes the environment, in a stable order, each name once.
pub fn environment(
    pod: &Pod,
    container: &Container,
    node: &NodeFacts,
    sources: &Sources,
) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let mut env = Environment::default();
    for (name, value) in &sources.services {
        env.set(name, value.clone().into_bytes());
    }
    from_objects(container, sources, &mut env)?;
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(text), _) if !text.is_empty() => {
                Some(expand(text, |name| env.text(name)).into_bytes())
            }
            (_, Some(source)) => from_source(pod, container, node, sources, source)?,
            _ => Some(Vec::new()),
        };
        if let Some(value) = value {
            env.set(&var.name, value);
        }
    }
    Ok(env.vars)
}

/// The environment as text, for `$(NAME)` in commands and arguments.
pub fn lookup<'a>(env: &'a [(String, Vec<u8>)]) -> impl Fn(&str) -> Option<String> + 'a {
    let map: BTreeMap<&str, &[u8]> = env
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_slice()))
        .collect();
    move |name| {
        map.get(name)
            .map(|v| String::from_utf8_lossy(v).into_owned())
    }
}

#[derive(Default)]
struct Environment {
    vars: Vec<(String, Vec<u8>)>,
    places: HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, name: &str, value: Vec<u8>) {
        match self.places.get(name) {
            Some(place) => {
                if let Some(var) = self.vars.get_mut(*place) {
                    var.1 = value;
                }
            }
            None => {
                self.places.insert(name.to_owned(), self.vars.len());
                self.vars.push((name.to_owned(), value));
            }
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        let (_, value) = self.vars.get(*self.places.get(name)?)?;
        Some(String::from_utf8_lossy(value).into_owned())
    }
}

fn from_objects(
    container: &Container,
    sources: &Sources,
    env: &mut Environment,
) -> Result<(), Error> {
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(wanted) = &source.config_map_ref {
            match sources.config_maps.get(&wanted.name) {
                Some(object) => {
                    for (key, value) in object.data.iter().flatten() {
                        env.set(&format!("{prefix}{key}"), value.clone().into_bytes());
                    }
                }
                None if wanted.optional == Some(true) => {}
                None => return Err(not_found("configmap", &wanted.name)),
            }
        }
        if let Some(wanted) = &source.secret_ref {
            match sources.secrets.get(&wanted.name) {
                Some(object) => {
                    for (key, value) in object.data.iter().flatten() {
                        env.set(&format!("{prefix}{key}"), value.0.clone());
                    }
                }
                None if wanted.optional == Some(true) => {}
                None => return Err(not_found("secret", &wanted.name)),
            }
        }
    }
    Ok(())
}

fn not_found(kind: &'static str, name: &str) -> Error {
    Error::NotFound {
        kind,
        name: name.to_owned(),
    }
}

fn from_source(
    pod: &Pod,
    container: &Container,
    node: &NodeFacts,
    sources: &Sources,
    source: &EnvVarSource,
) -> Result<Option<Vec<u8>>, Error> {
    let namespace = || pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(selector) = &source.field_ref {
        return Ok(Some(
            fields::field(pod, selector, node, sources.pod_ips)?.into_bytes(),
        ));
    }
    if let Some(selector) = &source.resource_field_ref {
        return Ok(Some(
            fields::resource(pod, Some(container), selector, node)?.into_bytes(),
        ));
    }
    if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional == Some(true);
        let Some(object) = sources.config_maps.get(&selector.name) else {
            return if optional {
                Ok(None)
            } else {
                Err(not_found("configmap", &selector.name))
            };
        };
        return match object.data.as_ref().and_then(|d| d.get(&selector.key)) {
            Some(value) => Ok(Some(value.clone().into_bytes())),
            None if optional => Ok(None),
            None => Err(Error::NoKey {
                kind: "ConfigMap",
                namespace: namespace(),
                name: selector.name.clone(),
                key: selector.key.clone(),
            }),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional == Some(true);
        let Some(object) = sources.secrets.get(&selector.name) else {
            return if optional {
                Ok(None)
            } else {
                Err(not_found("secret", &selector.name))
            };
        };
        return match object.data.as_ref().and_then(|d| d.get(&selector.key)) {
            Some(value) => Ok(Some(value.0.clone())),
            None if optional => Ok(None),
            None => Err(Error::NoKey {
                kind: "Secret",
                namespace: namespace(),
                name: selector.name.clone(),
                key: selector.key.clone(),
            }),
        };
    }
    Ok(Some(Vec::new()))
}

/// The names of the ConfigMaps and Secrets that the environments of a pod's containers refer to.
pub fn references(pod: &Pod) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    let spec = pod.spec.as_ref();
    let init = spec
        .and_then(|s| s.init_containers.as_ref())
        .into_iter()
        .flatten();
    for container in init.chain(spec.into_iter().flat_map(|s| &s.containers)) {
        for source in container.env_from.iter().flatten() {
            config_maps.extend(source.config_map_ref.as_ref().map(|r| r.name.clone()));
            secrets.extend(source.secret_ref.as_ref().map(|r| r.name.clone()));
        }
        for source in container
            .env
            .iter()
            .flatten()
            .filter_map(|v| v.value_from.as_ref())
        {
            config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
            secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
        }
    }
    (config_maps, secrets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(container: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [container]}}))
            .expect("a pod")
    }

    fn run(pod: &Pod, sources: &Sources) -> Result<Vec<(String, String)>, Error> {
        let container = &pod.spec.as_ref().expect("spec").containers[0];
        let env = environment(pod, container, &NodeFacts::default(), sources)?;
        Ok(env
            .into_iter()
            .map(|(k, v)| (k, String::from_utf8_lossy(&v).into_owned()))
            .collect())
    }

    fn config_map(name: &str, data: serde_json::Value) -> (String, std::sync::Arc<ConfigMap>) {
        let object = serde_json::from_value(json!({"metadata": {"name": name}, "data": data}))
            .expect("a config map");
        (name.to_owned(), std::sync::Arc::new(object))
    }

    #[test]
    fn later_sources_win_and_may_refer_to_earlier_ones() {
        let pod = pod(json!({"name": "c",
            "envFrom": [{"configMapRef": {"name": "m"}, "prefix": "P_"}],
            "env": [{"name": "A", "value": "$(P_X)-$(SVC_HOST)"}, {"name": "SVC_HOST", "value": "mine"},
                    {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}));
        let sources = Sources {
            config_maps: [config_map("m", json!({"X": "1"}))].into(),
            services: vec![("SVC_HOST".into(), "10.0.0.1".into())],
            ..Sources::default()
        };
        let expected = [
            ("SVC_HOST", "mine"),
            ("P_X", "1"),
            ("A", "1-10.0.0.1"),
            ("N", "p"),
        ];
        let expected: Vec<(String, String)> = expected.map(|(k, v)| (k.into(), v.into())).into();
        assert_eq!(run(&pod, &sources), Ok(expected));
    }

    #[test]
    fn a_missing_object_is_an_error_unless_optional() {
        let source = |optional: bool| {
            pod(
                json!({"name": "c", "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k", "optional": optional}}}]}),
            )
        };
        assert_eq!(run(&source(true), &Sources::default()), Ok(vec![]));
        let error = run(&source(false), &Sources::default()).expect_err("not there");
        assert_eq!(error.to_string(), "configmap \"m\" not found");
    }
}
