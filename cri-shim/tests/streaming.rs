//! The streaming server as its clients see it, with plain processes for commands.

use cri_shim::keeper::{ExecStdio, ExitStatus};
use cri_shim::streaming::{
    ExecSession, ExecSyncError, RunningExec, Server, StartExec, Streams, exec_sync,
};
use futures::{SinkExt, StreamExt};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(20);

/// A command that the shell runs.
fn shell(script: &'static str) -> StartExec {
    Box::new(move |stdio| {
        Box::pin(async move {
            let ExecStdio::Fds {
                stdin,
                stdout,
                stderr,
            } = stdio
            else {
                panic!("no terminal here")
            };
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]).stdin(Stdio::from(stdin));
            command
                .stdout(Stdio::from(stdout))
                .stderr(Stdio::from(stderr));
            let mut child = command.spawn()?;
            drop(command);
            let pidfd = linux::pidfd::open(child.id() as i32)?;
            let exit = async move {
                let status = tokio::task::spawn_blocking(move || child.wait())
                    .await
                    .unwrap()
                    .unwrap();
                Ok(ExitStatus::from_wait(status.into_raw()))
            };
            let kill = move || linux::pidfd::kill(&pidfd).unwrap();
            Ok(RunningExec {
                terminal: None,
                exit: Box::pin(exit),
                kill: Box::new(kill),
            })
        })
    })
}

async fn server() -> Server {
    Server::start("127.0.0.1:0".parse().unwrap(), CancellationToken::new())
        .await
        .unwrap()
}

const ALL: Streams = Streams {
    stdin: true,
    stdout: true,
    stderr: true,
    terminal: false,
};

type Socket = WebSocketStream<TcpStream>;

async fn connect(url: &str, protocol: &str) -> Result<Socket, tungstenite::Error> {
    let url = url.replace("http://", "ws://");
    let mut request = url.as_str().into_client_request().unwrap();
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    let address = request.uri().authority().unwrap().as_str().to_owned();
    let stream = TcpStream::connect(address).await.unwrap();
    let (socket, response) = tokio_tungstenite::client_async(request, stream).await?;
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], protocol);
    Ok(socket)
}

/// Everything until the close, by channel; and the first message.
async fn read_all(socket: &mut Socket) -> (BTreeMap<u8, Vec<u8>>, Vec<u8>) {
    let (mut channels, mut first) = (BTreeMap::<u8, Vec<u8>>::new(), None);
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next())
            .await
            .expect("in time");
        match message {
            Some(Ok(Message::Binary(data))) => {
                first.get_or_insert_with(|| data.to_vec());
                channels
                    .entry(data[0])
                    .or_default()
                    .extend_from_slice(&data[1..]);
            }
            Some(Ok(Message::Close(_))) | None => return (channels, first.unwrap_or_default()),
            Some(Ok(_)) => {}
            Some(Err(error)) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn a_command_gets_input_gives_output_and_its_exit_code_is_told() {
    let server = server().await;
    for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io"] {
        let start = shell("read line; echo got $line; echo bad >&2; exit 7");
        let url = server
            .exec(ExecSession {
                streams: ALL,
                start,
            })
            .unwrap();
        let mut socket = connect(&url, protocol).await.unwrap();
        socket
            .send(Message::binary(&b"\0hello\n"[..]))
            .await
            .unwrap();
        let (channels, first) = read_all(&mut socket).await;
        assert_eq!(
            first,
            [1],
            "kubectl waits for an empty message on the lowest channel"
        );
        assert_eq!(channels[&1], b"got hello\n");
        assert_eq!(channels[&2], b"bad\n");
        let status: serde_json::Value = serde_json::from_slice(&channels[&3]).unwrap();
        assert_eq!(status["status"], "Failure");
        assert_eq!(status["details"]["causes"][0]["message"], "7");
    }
}

#[tokio::test]
async fn version_5_ends_input_and_a_large_copy_arrives_whole() {
    let server = server().await;
    let url = server
        .exec(ExecSession {
            streams: ALL,
            start: shell("cat"),
        })
        .unwrap();
    let socket = connect(&url, "v5.channel.k8s.io").await.unwrap();
    let (mut sink, mut stream) = socket.split();
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let send = async {
        for chunk in data.chunks(50_000) {
            sink.send(Message::binary([&[0][..], chunk].concat()))
                .await
                .unwrap();
        }
        sink.send(Message::binary(&[255u8, 0][..])).await.unwrap();
    };
    let receive = async {
        let mut received = Vec::new();
        while let Some(Ok(Message::Binary(message))) = stream.next().await {
            match message[0] {
                1 => received.extend_from_slice(&message[1..]),
                3 => assert_eq!(message[1..], br#"{"metadata":{},"status":"Success"}"#[..]),
                channel => panic!("channel {channel}"),
            }
        }
        received
    };
    let ((), received) = tokio::time::timeout(PATIENCE, async { tokio::join!(send, receive) })
        .await
        .unwrap();
    assert!(received == data);
}

#[tokio::test]
async fn a_url_is_good_once_and_only_for_its_kind() {
    let server = server().await;
    let url = server
        .exec(ExecSession {
            streams: ALL,
            start: shell("exit 0"),
        })
        .unwrap();
    let wrong = connect(&url.replace("/exec/", "/attach/"), "v5.channel.k8s.io")
        .await
        .unwrap_err();
    assert!(wrong.to_string().contains("404"), "{wrong}");
    let again = connect(&url, "v5.channel.k8s.io").await.unwrap_err();
    assert!(
        again.to_string().contains("404"),
        "a token is void after the first try: {again}"
    );
}

#[tokio::test]
async fn a_start_that_fails_is_told_as_a_status() {
    let server = server().await;
    let start: StartExec = Box::new(|_| Box::pin(async { Err("no such file".into()) }));
    let url = server
        .exec(ExecSession {
            streams: ALL,
            start,
        })
        .unwrap();
    let (channels, _) = read_all(&mut connect(&url, "v4.channel.k8s.io").await.unwrap()).await;
    let status: serde_json::Value = serde_json::from_slice(&channels[&3]).unwrap();
    assert_eq!(status["code"], 500);
    assert!(status["message"].as_str().unwrap().contains("no such file"));
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_commands_input() {
    let server = server().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("done");
    let script: &'static str = format!("cat >/dev/null; echo > {}", path.display()).leak();
    let url = server
        .exec(ExecSession {
            streams: ALL,
            start: shell(script),
        })
        .unwrap();
    drop(connect(&url, "v5.channel.k8s.io").await.unwrap());
    tokio::time::timeout(PATIENCE, async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn exec_sync_collects_both_streams_and_does_not_wait_for_the_background() {
    let output = exec_sync(shell("echo out; echo err >&2; sleep 30 & exit 3"), None)
        .await
        .unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice()),
        (&b"out\n"[..], &b"err\n"[..])
    );
    assert_eq!(output.exit.code, 3);
}

#[tokio::test]
async fn exec_sync_kills_what_takes_too_long() {
    let started = std::time::Instant::now();
    let error = exec_sync(shell("exec sleep 30"), Some(Duration::from_millis(50)))
        .await
        .unwrap_err();
    assert!(matches!(error, ExecSyncError::Timeout(_)), "{error}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn exec_sync_limits_what_it_keeps_and_not_what_is_printed() {
    let output = exec_sync(shell("head -c 20000000 /dev/zero; exit 0"), None)
        .await
        .unwrap();
    assert_eq!(output.stdout.len(), 16 * 1024 * 1024);
    assert_eq!(output.exit.code, 0);
}
