//! get and list.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use api::selector::{FieldSelector, LabelSelector};

use super::super::api::Api;
use super::super::cache::{Filter, Resource};
use super::super::failure::{Failure, Result};
use super::super::negotiate::{self, Form};
use super::super::object::{Index, Object, write_with_revision};
use super::super::query::Query;
use super::super::reply::{self, Reply};
use super::super::table;
use super::Request;
use crate::store::{Error, ListOptions, Revision};

impl Api {
    /// The object as it is now, every acknowledged write included.
    ///
    /// # Errors
    /// 404 when there is none.
    pub async fn read(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Object>> {
        self.cache.catch_up().await?;
        resource
            .get(namespace, name)
            .ok_or_else(|| Failure::not_found(resource.kind, name))
    }
}

pub async fn get(api: &Api, request: &Request) -> Result<Reply> {
    let target = &request.target;
    let wanted = revision(&request.query, "resourceVersion")?;
    let object = match wanted {
        // Any version will do, or any from this one on.
        Some(wanted) => {
            api.cache.wait_for(wanted).await?;
            request.resource.get(&target.namespace, &target.name)
        }
        None => {
            api.cache.catch_up().await?;
            request.resource.get(&target.namespace, &target.name)
        }
    };
    let object = object.ok_or_else(|| Failure::not_found(request.kind(), &target.name))?;
    one(
        request,
        StatusCode::OK,
        object.json.clone(),
        object.revision,
    )
}

/// One object in the form that the client wants.
pub fn one(request: &Request, code: StatusCode, json: Bytes, revision: Revision) -> Result<Reply> {
    let form = negotiate::form(&request.headers, &request.query)?;
    let object = |json| {
        Arc::new(Object {
            revision,
            json,
            index: Arc::new(Index::default()),
        })
    };
    Ok(match form {
        Form::Whole => reply::json_bytes(code, json),
        Form::Metadata => reply::json(code, &table::partial_metadata(object(json).value())),
        Form::Table(rows) => {
            let mut table = table::table(request.kind(), &[object(json)], rows, true);
            table["metadata"]["resourceVersion"] = revision.to_string().into();
            reply::json(code, &table)
        }
    })
}

/// A `resourceVersion` parameter; absent, or 0 for "any".
pub fn revision(query: &Query, name: &str) -> Result<Option<Revision>> {
    query
        .get(name)
        .map(|text| {
            text.parse().map(Revision).map_err(|_| {
                Failure::bad_request(format!("{name}: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"))
            })
        })
        .transpose()
}

/// The namespace and selectors of a list, watch or deletecollection.
pub fn filter(request: &Request) -> Result<Filter> {
    let query = &request.query;
    let labels = query
        .get("labelSelector")
        .map(|text| LabelSelector::parse(text).map_err(|e| Failure::bad_request(e.to_string())))
        .transpose()?;
    let fields = query
        .get("fieldSelector")
        .map(|text| FieldSelector::parse(text).map_err(|e| Failure::bad_request(e.to_string())))
        .transpose()?;
    if let Some(fields) = &fields {
        let known = (request.kind().selectable_fields)(&json!({}));
        if let Some(term) = fields
            .terms()
            .iter()
            .find(|t| !known.iter().any(|(name, _)| *name == t.field))
        {
            return Err(Failure::bad_request(format!(
                "Unable to find {:?} that match label selector {:?}, field selector {:?}: field label not supported: {}",
                format!("{}, Resource={}", gv(request), request.kind().plural),
                query.get("labelSelector").unwrap_or_default(),
                query.get("fieldSelector").unwrap_or_default(),
                term.field
            )));
        }
    }
    let labels = labels.filter(|s| !s.is_empty());
    Ok(Filter {
        namespace: request.target.namespace.clone(),
        labels,
        fields: fields.filter(|s| !s.is_empty()),
    })
}

fn gv(request: &Request) -> String {
    format!("{}/{}", request.kind().group, request.kind().version)
}

/// What a list found.
struct Found {
    objects: Vec<Arc<Object>>,
    revision: Revision,
    next: Option<String>,
    remaining: usize,
}

pub async fn list(api: &Api, request: &Request) -> Result<Reply> {
    let filter = filter(request)?;
    let query = &request.query;
    let limit = query.number::<usize>("limit")?.unwrap_or(0);
    let wanted = revision(query, "resourceVersion")?;
    let exact = match query.get("resourceVersionMatch") {
        None => false,
        Some("Exact") if wanted.is_some_and(|r| r.0 > 0) => true,
        Some("NotOlderThan") if wanted.is_some() => false,
        Some(other) => {
            return Err(Failure::bad_request(format!(
                "resourceVersionMatch: {other:?} is not allowed with this resourceVersion"
            )));
        }
    };
    let found = if let Some(token) = query.get("continue") {
        let token = Token::parse(token, &request.resource)?;
        page(
            api,
            request,
            &filter,
            limit,
            Revision(token.revision),
            Some(token.after),
        )
        .await?
    } else if exact {
        page(
            api,
            request,
            &filter,
            limit,
            wanted.unwrap_or_default(),
            None,
        )
        .await?
    } else {
        match wanted {
            Some(wanted) => api.cache.wait_for(wanted).await?,
            None => drop(api.cache.catch_up().await?),
        }
        newest(request, &filter, limit, api.cache.applied())
    };
    reply(request, found)
}

/// A list from the cache. What the limit leaves out is read from the store later, as of the same revision.
fn newest(request: &Request, filter: &Filter, limit: usize, applied: Revision) -> Found {
    let (mut objects, revision) = request.resource.list(filter, applied);
    if limit == 0 || objects.len() <= limit {
        return Found {
            objects,
            revision,
            next: None,
            remaining: 0,
        };
    }
    let remaining = objects.len() - limit;
    objects.truncate(limit);
    let next = objects.last().map(|last| {
        let value = last.value();
        let key = request
            .resource
            .key(&last.index.namespace, api::object::name(&value));
        Token {
            revision: revision.0,
            after: key,
        }
        .encode()
    });
    Found {
        objects,
        revision,
        next,
        remaining: if filter.selects() { 0 } else { remaining },
    }
}

/// A list from the store, as of `at`.
async fn page(
    api: &Api,
    request: &Request,
    filter: &Filter,
    limit: usize,
    at: Revision,
    after: Option<String>,
) -> Result<Found> {
    let resource = &request.resource;
    let prefix = resource.key(&filter.namespace, "");
    let continued = after.is_some();
    let mut after = after;
    let mut objects: Vec<Arc<Object>> = Vec::new();
    loop {
        let options = ListOptions {
            after: after.take(),
            limit,
            at: Some(at),
            count: !filter.selects(),
        };
        let listing = api.cache.store().list(&prefix, options).await;
        let listing = listing.map_err(|e| match e {
            Error::Compacted { .. } if continued => Failure::continue_expired(),
            other => other.into(),
        })?;
        let last = listing.records.last().map(|r| r.key.clone());
        for record in &listing.records {
            let mut json = Vec::with_capacity(record.value.len() + 40);
            write_with_revision(&mut json, &record.value, record.modified);
            let object = resource.object(json.into(), record.modified);
            if !filter.matches(&object.index) {
                continue;
            }
            objects.push(Arc::new(object));
            if limit > 0 && objects.len() == limit {
                let more = listing.more || last.as_ref() != Some(&record.key);
                let token = Token {
                    revision: at.0,
                    after: record.key.to_string(),
                };
                return Ok(Found {
                    objects,
                    revision: at,
                    next: more.then(|| token.encode()),
                    remaining: listing.remaining,
                });
            }
        }
        after = last.map(|key| key.to_string());
        if !listing.more {
            return Ok(Found {
                objects,
                revision: at,
                next: None,
                remaining: 0,
            });
        }
    }
}

fn reply(request: &Request, found: Found) -> Result<Reply> {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), found.revision.to_string().into());
    if let Some(next) = &found.next {
        metadata.insert("continue".into(), next.as_str().into());
    }
    if found.remaining > 0 {
        metadata.insert("remainingItemCount".into(), found.remaining.into());
    }
    let metadata = Value::Object(metadata);
    let kind = request.kind();
    Ok(match negotiate::form(&request.headers, &request.query)? {
        Form::Whole => {
            let head = format!(
                r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#,
                kind.kind,
                kind.api_version()
            );
            whole_list(head, found.objects)
        }
        Form::Metadata => {
            let items: Vec<Value> = found
                .objects
                .iter()
                .map(|o| table::partial_metadata(o.value()))
                .collect();
            let list = json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items,
            });
            reply::json(StatusCode::OK, &list)
        }
        Form::Table(rows) => {
            let mut table = table::table(kind, &found.objects, rows, true);
            table["metadata"] = metadata;
            reply::json(StatusCode::OK, &table)
        }
    })
}

/// A list of whole objects. A long one is written as it is sent, so that it is not in memory twice.
fn whole_list(head: String, objects: Vec<Arc<Object>>) -> Reply {
    let mut text = head.into_bytes();
    let mut first = true;
    let mut objects = objects.into_iter();
    let mut fill = move |text: &mut Vec<u8>| {
        while text.len() < reply::CHUNK {
            let Some(object) = objects.next() else {
                text.extend_from_slice(b"]}\n");
                return true;
            };
            if !std::mem::take(&mut first) {
                text.push(b',');
            }
            text.extend_from_slice(&object.json);
        }
        false
    };
    if fill(&mut text) {
        return reply::json_bytes(StatusCode::OK, text);
    }
    let mut done = false;
    let rest = std::iter::from_fn(move || {
        if done {
            return None;
        }
        let mut text = Vec::with_capacity(2 * reply::CHUNK);
        done = fill(&mut text);
        Some(Bytes::from(text))
    });
    let chunks = std::iter::once(Bytes::from(text)).chain(rest);
    reply::stream("application/json", futures::stream::iter(chunks))
}

/// Where a list goes on, opaque to clients.
#[derive(Serialize, Deserialize)]
struct Token {
    #[serde(rename = "rv")]
    revision: u64,
    #[serde(rename = "start")]
    after: String,
}

impl Token {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn parse(text: &str, resource: &Resource) -> Result<Self> {
        let invalid = || Failure::bad_request("continue key is not valid: invalid continue token");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
        if token.after.starts_with(resource.prefix()) {
            Ok(token)
        } else {
            Err(invalid())
        }
    }
}
