//! Exec and attach over SPDY: a stream for each of the five channels, told apart by their `streamType` header.

use super::remote::{Output, Wire, parse_resize};
use super::session::Streams;
use super::spdy::{Connection, Stream, StreamWriter};
use bytes::Bytes;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the client may take to open its streams (upstream's default).
const CREATION_LIMIT: Duration = Duration::from_secs(30);

/// How long the client may take to close the connection when all has been told.
const CLOSING_LIMIT: Duration = Duration::from_secs(5);

/// The remote command protocol's version, as in `X-Stream-Protocol-Version`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V1,
    V2,
    /// Terminals have sizes.
    V3,
    /// The end is told as a `metav1.Status`.
    V4,
}

/// By preference of nobody: the client's order counts.
const VERSIONS: [(&str, Version); 5] = [
    ("v4.channel.k8s.io", Version::V4),
    ("v3.channel.k8s.io", Version::V3),
    ("v2.channel.k8s.io", Version::V2),
    ("channel.k8s.io", Version::V1),
    ("", Version::V1),
];

/// The names, for a client that offers none of them.
pub(super) fn supported() -> impl Iterator<Item = &'static str> {
    VERSIONS
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !name.is_empty())
}

/// The first of the client's versions that we speak; without any, the oldest.
pub(super) fn negotiate<'a>(
    offered: impl Iterator<Item = &'a str>,
) -> Option<(&'static str, Version)> {
    let mut offered = offered.peekable();
    if offered.peek().is_none() {
        return VERSIONS.last().copied();
    }
    offered.find_map(|name| VERSIONS.iter().find(|(known, _)| *known == name).copied())
}

/// The streams of one session.
#[derive(Default)]
struct Channels {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

/// Carries a session over a connection, until the session or the client ends.
pub(super) async fn serve(
    mut connection: Connection,
    version: Version,
    wanted: Streams,
    wire: Wire,
) {
    let channels =
        tokio::time::timeout(CREATION_LIMIT, collect(&mut connection, version, wanted)).await;
    let Ok(Some(channels)) = channels else {
        tracing::debug!("SPDY client did not open its streams in time");
        return;
    };
    let Wire {
        stdin,
        resize,
        output,
    } = wire;
    let Channels {
        error: Some(error),
        stdin: input,
        stdout,
        stderr,
        resize: sizes,
    } = channels
    else {
        return;
    };
    if let (Some(input), Some(stdin)) = (input, stdin) {
        tokio::spawn(forward_input(input, stdin));
    }
    if let Some(sizes) = sizes {
        tokio::spawn(forward_sizes(sizes, resize));
    }
    let outputs = [stdout, stderr].map(|stream| stream.map(|stream| stream.output));
    tokio::select! {
        () = connection.gone.cancelled() => return,
        () = forward_output(output, version, outputs, &error.output) => {}
    }
    // All is on its way. Closing first could overtake it.
    let _ = tokio::time::timeout(CLOSING_LIMIT, connection.gone.cancelled()).await;
}

/// Waits for the streams that belong to the request.
async fn collect(
    connection: &mut Connection,
    version: Version,
    wanted: Streams,
) -> Option<Channels> {
    let mut channels = Channels::default();
    loop {
        let complete = channels.error.is_some()
            && (channels.stdin.is_some() || !wanted.stdin)
            && (channels.stdout.is_some() || !wanted.stdout)
            && (channels.stderr.is_some() || !wanted.stderr || wanted.terminal)
            && (channels.resize.is_some() || !wanted.terminal || version < Version::V3);
        if complete {
            return Some(channels);
        }
        let stream = connection.streams.recv().await?;
        let place = match stream.header("streamType") {
            Some("error") => &mut channels.error,
            Some("stdin") => &mut channels.stdin,
            Some("stdout") => &mut channels.stdout,
            Some("stderr") => &mut channels.stderr,
            Some("resize") => &mut channels.resize,
            _ => {
                stream.output.reset().await;
                continue;
            }
        };
        *place = Some(stream);
    }
}

async fn forward_input(mut stream: Stream, stdin: mpsc::Sender<Bytes>) {
    while let Some(data) = stream.input.recv().await {
        if stdin.send(data).await.is_err() {
            return;
        }
    }
}

async fn forward_sizes(mut stream: Stream, resize: mpsc::Sender<(u16, u16)>) {
    while let Some(data) = stream.input.recv().await {
        // The client's encoder writes each size in one go, with a line end.
        for line in data
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            if let Some(size) = parse_resize(line)
                && resize.send(size).await.is_err()
            {
                return;
            }
        }
    }
}

async fn forward_output(
    mut output: mpsc::Receiver<Output>,
    version: Version,
    [stdout, stderr]: [Option<StreamWriter>; 2],
    error: &StreamWriter,
) {
    while let Some(message) = output.recv().await {
        match (message, &stdout, &stderr) {
            (Output::Stdout(data), Some(stream), _) | (Output::Stderr(data), _, Some(stream)) => {
                stream.send(data).await;
            }
            (Output::Stdout(_) | Output::Stderr(_), ..) => {}
            (Output::Status(status), ..) => {
                let text = if version >= Version::V4 {
                    Some(status.to_json())
                } else {
                    status.to_text()
                };
                if let Some(text) = text {
                    error.send(text.into()).await;
                }
            }
        }
    }
    for stream in [stdout.as_ref(), stderr.as_ref(), Some(error)]
        .into_iter()
        .flatten()
    {
        stream.finish().await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::remote::{Remote, remote};
    use super::super::spdy::testing::Client;
    use super::super::status::Status;
    use super::*;

    const ALL: Streams = Streams {
        stdin: true,
        stdout: true,
        stderr: true,
        terminal: false,
    };

    fn start(version: Version, streams: Streams) -> (Client, Remote) {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (remote, wire) = remote();
        tokio::spawn(serve(Connection::start(theirs), version, streams, wire));
        (Client::new(ours), remote)
    }

    #[tokio::test]
    async fn each_channel_is_a_stream_and_the_end_is_told_on_errors() {
        let (mut client, mut remote) = start(Version::V4, ALL);
        let error = client.open(&[("streamtype", "error")]).await;
        let stdin = client.open(&[("streamType", "stdin")]).await;
        let stdout = client.open(&[("streamtype", "stdout")]).await;
        let stderr = client.open(&[("streamtype", "stderr")]).await;
        client.send(stdin, b"typed", true).await;
        assert_eq!(remote.stdin.recv().await.unwrap(), "typed");
        assert_eq!(remote.stdin.recv().await, None);
        remote
            .output
            .send(Output::Stdout("out".into()))
            .await
            .unwrap();
        remote
            .output
            .send(Output::Stderr("err".into()))
            .await
            .unwrap();
        remote
            .output
            .send(Output::Status(Status::NonZeroExitCode(3)))
            .await
            .unwrap();
        drop(remote);
        assert_eq!(client.read_to_end(stdout).await, b"out");
        assert_eq!(client.read_to_end(stderr).await, b"err");
        let status = String::from_utf8(client.read_to_end(error).await).unwrap();
        assert!(status.contains(r#""message":"3""#), "{status}");
    }

    #[tokio::test]
    async fn a_terminal_has_sizes_and_no_stderr() {
        let streams = Streams {
            terminal: true,
            ..ALL
        };
        let (mut client, mut remote) = start(Version::V3, streams);
        for kind in ["error", "stdin", "stdout"] {
            client.open(&[("streamtype", kind)]).await;
        }
        let resize = client.open(&[("streamtype", "resize")]).await;
        client
            .send(
                resize,
                b"{\"Width\":80,\"Height\":24}\n{\"Width\":132,\"Height\":50}\n",
                false,
            )
            .await;
        assert_eq!(remote.resize.recv().await, Some((80, 24)));
        assert_eq!(remote.resize.recv().await, Some((132, 50)));
    }

    #[tokio::test]
    async fn a_client_that_goes_ends_the_session() {
        let (mut client, mut remote) = start(Version::V4, ALL);
        for kind in ["error", "stdin", "stdout", "stderr"] {
            client.open(&[("streamtype", kind)]).await;
        }
        drop(client);
        assert_eq!(remote.stdin.recv().await, None);
        remote.output.closed().await;
    }

    #[test]
    fn the_clients_first_known_version_is_taken() {
        let names = [
            "v5.channel.k8s.io",
            "v4.channel.k8s.io",
            "v3.channel.k8s.io",
        ];
        assert_eq!(
            negotiate(names.into_iter()),
            Some(("v4.channel.k8s.io", Version::V4))
        );
        assert_eq!(negotiate(std::iter::empty()), Some(("", Version::V1)));
        assert_eq!(negotiate(["portforward.k8s.io"].into_iter()), None);
    }
}
