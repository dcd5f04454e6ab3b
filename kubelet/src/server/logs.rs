//! `GET /containerLogs/{namespace}/{pod}/{container}` (PodLogOptions).

use std::path::PathBuf;

use futures::StreamExt;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Answers, Body, Refusal, parameters};
use crate::logs::entry::Stream;
use crate::logs::{Follow, LogOptions, Reader, follow};
use crate::pod::PodExt;
use crate::runtime::view::Container;

/// Chunks of a log that wait for a slow client.
const BUFFERED: usize = 4;

pub fn container_logs(
    answers: &Answers,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &str,
) -> Result<Response<Body>, Refusal> {
    let options = options(query)?;
    let pod = answers
        .pods
        .find(namespace, pod)
        .ok_or_else(|| Refusal::not_found(format!("pod \"{pod}\" does not exist")))?;
    if pod.container(container).is_none() {
        let message = format!(
            "container \"{container}\" not found in pod \"{}\"",
            pod.name()
        );
        return Err(Refusal::not_found(message));
    }
    let instance = instance(answers, &pod, container, options.previous)?;
    let path = PathBuf::from(&instance.log_path);
    let Ok(reader) = Reader::open(&path, &options) else {
        // It never started, or its log is gone: upstream says so in place of the log.
        let runtime = &answers.shared.runtime_name;
        let text = format!(
            "unable to retrieve container logs for {runtime}://{}",
            instance.id
        );
        return Ok(plain(
            Full::new(text.into())
                .map_err(|never| match never {})
                .boxed_unsync(),
        ));
    };
    let (sender, receiver) = mpsc::channel(BUFFERED);
    let what = Follow {
        path,
        reader,
        container_id: instance.id,
        follow: options.follow,
    };
    tokio::spawn(follow(what, answers.shared.cache.clone(), sender));
    let frames = ReceiverStream::new(receiver).map(|chunk| match chunk {
        Ok(bytes) => Ok(Frame::data(bytes)),
        Err(error) => Err(error.into()),
    });
    Ok(plain(StreamBody::new(frames).boxed_unsync()))
}

fn plain(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(
        http::header::CONTENT_TYPE,
        http::HeaderValue::from_static("text/plain"),
    );
    response
}

fn instance(
    answers: &Answers,
    pod: &Pod,
    container: &str,
    previous: bool,
) -> Result<Container, Refusal> {
    let runtime = answers.shared.cache.pod(&pod.uid());
    let mut instances = runtime
        .iter()
        .flat_map(|r| r.instances(container))
        .filter(|c| !c.log_path.is_empty());
    let newest = instances.next();
    let wanted = if previous { instances.next() } else { newest };
    match (wanted, previous) {
        (Some(container), _) => Ok(container.clone()),
        (None, true) => Err(Refusal::bad_request(format!(
            "previous terminated container \"{container}\" in pod \"{}\" not found",
            pod.name()
        ))),
        (None, false) => {
            let status = answers.shared.writer.wanted(&pod.uid());
            let all = status.iter().flat_map(|s| {
                s.container_statuses
                    .iter()
                    .chain(&s.init_container_statuses)
                    .flatten()
            });
            let waiting = { all }
                .find(|c| c.name == container)
                .and_then(|c| c.state.clone()?.waiting?.reason);
            let reason = waiting.unwrap_or_else(|| "ContainerCreating".into());
            Err(Refusal::bad_request(format!(
                "container \"{container}\" in pod \"{}\" is waiting to start: {reason}",
                pod.name()
            )))
        }
    }
}

fn options(query: &str) -> Result<LogOptions, Refusal> {
    let mut options = LogOptions::default();
    for (key, value) in parameters(query) {
        let flag = matches!(value.as_str(), "true" | "1");
        let number = || {
            value
                .parse::<u64>()
                .map_err(|_| Refusal::bad_request(format!("invalid {key}: {value:?}")))
        };
        match key.as_str() {
            "follow" => options.follow = flag,
            "previous" => options.previous = flag,
            "timestamps" => options.timestamps = flag,
            "tailLines" => options.tail_lines = Some(number()?),
            "limitBytes" => options.limit_bytes = Some(number()?),
            "sinceSeconds" => {
                let seconds = i64::try_from(number()?).unwrap_or(i64::MAX / 4);
                options.since = Timestamp::now()
                    .checked_sub(SignedDuration::from_secs(seconds))
                    .ok();
            }
            "sinceTime" => {
                let time = value
                    .parse()
                    .map_err(|_| Refusal::bad_request(format!("invalid sinceTime: {value:?}")))?;
                options.since = Some(time);
            }
            "stream" if value == "Stdout" => options.stream = Some(Stream::Stdout),
            "stream" if value == "Stderr" => options.stream = Some(Stream::Stderr),
            _ => {}
        }
    }
    Ok(options)
}
