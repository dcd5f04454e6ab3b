//! exec, attach and port-forward: the runtime says where it streams them, and the client's upgraded connection is
//! joined to that place as it is. Whatever protocol the two speak, no byte of it is read here.

use std::time::Duration;

use cri_api::v1;
use http::{HeaderMap, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Answers, Body, Refusal, body, parameters, text};
use crate::pod::PodExt;

/// How long `run` may take; a client that wants more uses exec.
const RUN_TIMEOUT: Duration = Duration::from_secs(600);

struct Streams {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
    command: Vec<String>,
}

/// Both the kubelet's own names and the API server's are understood.
fn streams(query: &str) -> Streams {
    let mut streams = Streams {
        stdin: false,
        stdout: false,
        stderr: false,
        tty: false,
        command: Vec::new(),
    };
    for (key, value) in parameters(query) {
        let on = matches!(value.as_str(), "1" | "true");
        match key.as_str() {
            "input" | "stdin" => streams.stdin = on,
            "output" | "stdout" => streams.stdout = on,
            "error" | "stderr" => streams.stderr = on,
            "tty" => streams.tty = on,
            "command" => streams.command.push(value),
            _ => {}
        }
    }
    // A terminal has one stream for both.
    streams.stderr &= !streams.tty;
    streams
}

fn running_container(
    answers: &Answers,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<String, Refusal> {
    let pod = answers
        .pods
        .find(namespace, pod)
        .ok_or_else(|| Refusal::not_found(format!("pod \"{pod}\" does not exist")))?;
    let runtime = answers.shared.cache.pod(&pod.uid());
    let latest = runtime
        .as_ref()
        .and_then(|r| r.latest(container))
        .filter(|c| c.is_running());
    latest
        .map(|c| c.id.clone())
        .ok_or_else(|| Refusal::not_found(format!("container not found (\"{container}\")")))
}

fn failed(error: &crate::runtime::Error) -> Refusal {
    Refusal::internal(error.message())
}

/// Where an exec streams.
pub async fn exec_url(
    answers: &Answers,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &str,
) -> Result<String, Refusal> {
    let container_id = running_container(answers, namespace, pod, container)?;
    let streams = streams(query);
    if !(streams.stdin || streams.stdout || streams.stderr) {
        return Err(Refusal::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ));
    }
    if streams.command.is_empty() {
        return Err(Refusal::bad_request("you must specify a command"));
    }
    let request = v1::ExecRequest {
        container_id,
        cmd: streams.command,
        tty: streams.tty,
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
    };
    answers
        .shared
        .cri
        .exec(request)
        .await
        .map(|reply| reply.url)
        .map_err(|error| failed(&error))
}

/// Where an attach streams.
pub async fn attach_url(
    answers: &Answers,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &str,
) -> Result<String, Refusal> {
    let container_id = running_container(answers, namespace, pod, container)?;
    let streams = streams(query);
    let request = v1::AttachRequest {
        container_id,
        stdin: streams.stdin,
        tty: streams.tty,
        stdout: streams.stdout,
        stderr: streams.stderr,
    };
    answers
        .shared
        .cri
        .attach(request)
        .await
        .map(|reply| reply.url)
        .map_err(|error| failed(&error))
}

/// Where a port-forward streams.
pub async fn port_forward_url(
    answers: &Answers,
    namespace: &str,
    pod: &str,
    query: &str,
) -> Result<String, Refusal> {
    let found = answers
        .pods
        .find(namespace, pod)
        .ok_or_else(|| Refusal::not_found(format!("pod \"{pod}\" does not exist")))?;
    let runtime = answers.shared.cache.pod(&found.uid());
    let sandbox = runtime.as_ref().and_then(|r| r.ready_sandbox());
    let pod_sandbox_id = sandbox
        .map(|s| s.id.clone())
        .ok_or_else(|| Refusal::not_found("pod has no sandbox"))?;
    let ports = parameters(query)
        .into_iter()
        .filter(|(key, _)| key == "port" || key == "ports");
    let port = ports
        .flat_map(|(_, v)| {
            v.split(',')
                .filter_map(|p| p.parse().ok())
                .collect::<Vec<i32>>()
        })
        .collect();
    let request = v1::PortForwardRequest {
        pod_sandbox_id,
        port,
    };
    answers
        .shared
        .cri
        .port_forward(request)
        .await
        .map(|reply| reply.url)
        .map_err(|error| failed(&error))
}

/// `POST /run/…?cmd=…`: a command's output, all of it at its end.
pub async fn run(
    answers: &Answers,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &str,
) -> Result<Response<Body>, Refusal> {
    let id = running_container(answers, namespace, pod, container)?;
    let command = parameters(query)
        .into_iter()
        .find(|(key, _)| key == "cmd")
        .map(|(_, value)| value);
    let words: Vec<String> = command
        .unwrap_or_default()
        .split(' ')
        .map(str::to_owned)
        .collect();
    let reply = answers
        .shared
        .cri
        .exec_sync(&id, &words, RUN_TIMEOUT)
        .await
        .map_err(|error| failed(&error))?;
    Ok(text([reply.stdout, reply.stderr].concat()))
}

/// Hands the request to the runtime's streaming server, and once that has switched protocols, joins the two
/// connections.
pub async fn pass_through(
    mut request: Request<Incoming>,
    url: &str,
) -> Result<Response<Body>, Refusal> {
    let uri: Uri = url
        .parse()
        .map_err(|_| Refusal::internal(format!("the runtime gave an invalid URL: {url:?}")))?;
    let (Some(host), port) = (uri.host(), uri.port_u16().unwrap_or(80)) else {
        return Err(Refusal::internal(format!(
            "the runtime gave an URL without a host: {url:?}"
        )));
    };
    let unreachable = |error: &dyn std::fmt::Display| {
        Refusal::new(
            StatusCode::BAD_GATEWAY,
            format!("reach the runtime's streaming server: {error}"),
        )
    };
    let host = host.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| unreachable(&error))?;
    stream
        .set_nodelay(true)
        .map_err(|error| unreachable(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| unreachable(&error))?;
    tokio::spawn(connection.with_upgrades());
    let onward = onward(&request, &uri).map_err(|error| unreachable(&error))?;
    let mut reply = sender
        .send_request(onward)
        .await
        .map_err(|error| unreachable(&error))?;
    if reply.status() != StatusCode::SWITCHING_PROTOCOLS {
        let status = reply.status();
        let bytes = reply
            .into_body()
            .collect()
            .await
            .map_err(|error| unreachable(&error))?
            .to_bytes();
        let mut response = Response::new(body(bytes));
        *response.status_mut() = status;
        return Ok(response);
    }
    let mut response = Response::new(body(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = reply.headers().clone();
    let (client, runtime) = (
        hyper::upgrade::on(&mut request),
        hyper::upgrade::on(&mut reply),
    );
    tokio::spawn(async move {
        match tokio::try_join!(client, runtime) {
            Ok((client, runtime)) => {
                // How a stream ends is the two sides' affair.
                let _ = tokio::io::copy_bidirectional(
                    &mut TokioIo::new(client),
                    &mut TokioIo::new(runtime),
                )
                .await;
            }
            Err(error) => tracing::debug!(%error, "a streaming connection was not switched"),
        }
    });
    Ok(response)
}

fn onward(
    request: &Request<Incoming>,
    uri: &Uri,
) -> Result<Request<Empty<bytes::Bytes>>, http::Error> {
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let mut onward = Request::builder()
        .method(request.method())
        .uri(path)
        .body(Empty::new())?;
    let mut headers: HeaderMap = request.headers().clone();
    // The body, if any, is not passed on; credentials are for the kubelet alone.
    for name in [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::AUTHORIZATION,
        header::HOST,
    ] {
        headers.remove(name);
    }
    if let Some(authority) = uri.authority().and_then(|a| a.as_str().parse().ok()) {
        headers.insert(header::HOST, authority);
    }
    *onward.headers_mut() = headers;
    Ok(onward)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_the_streams_are_understood() {
        let upstream = streams("input=1&output=1&tty=1&error=1&command=sh");
        assert!(upstream.stdin && upstream.stdout && upstream.tty && !upstream.stderr);
        let api = streams("stdin=false&stdout=true&stderr=true&command=a&command=b");
        assert!(!api.stdin && api.stdout && api.stderr);
        assert_eq!(api.command, ["a", "b"]);
    }
}
