//! The demo's program: a small HTTP server, and the few tools that its proof needs inside a container.
//!
//! ```text
//! demo serve PORT            answers with the pod's name
//! demo get URL [TIMES]       prints what http://ADDRESS:PORT/PATH answers, a line each
//! demo cat FILE              prints a file
//! demo echo TEXT             prints its argument
//! demo exit CODE             ends with this status
//! demo count MILLISECONDS    prints 0, 1, 2, … with so long between
//! demo lines                 reads its input and prints each line again
//! demo sleep SECONDS         waits
//! demo eat MEBIBYTES         takes memory, and keeps it
//! demo spin                  takes CPU time
//! ```

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;
use std::{env, fs, thread};

const TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["serve", port] => serve(port),
        ["get", url] => get(url, 1),
        ["get", url, times] => get(url, times.parse().unwrap_or(1)),
        ["cat", file] => cat(file),
        ["echo", text] => {
            println!("{text}");
            Ok(())
        }
        ["exit", code] => return ExitCode::from(code.parse().unwrap_or(1)),
        ["sleep", seconds] => {
            thread::sleep(Duration::from_secs(seconds.parse().unwrap_or(0)));
            Ok(())
        }
        ["count", pause] => count(pause.parse().unwrap_or(1000)),
        ["lines"] => lines(),
        ["eat", mebibytes] => eat(mebibytes.parse().unwrap_or(0)),
        ["spin"] => loop {
            std::hint::spin_loop();
        },
        _ => Err("usage: demo serve PORT | get URL [TIMES] | cat FILE | echo TEXT | exit CODE | count MILLISECONDS | lines | sleep SECONDS | eat MEBIBYTES | spin".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn serve(port: &str) -> Outcome {
    // One socket for both families: an IPv6 one takes IPv4 too, where the kernel has IPv6.
    let listener = TcpListener::bind(format!("[::]:{port}"))
        .or_else(|_| TcpListener::bind(format!("0.0.0.0:{port}")))?;
    println!("serving on port {port}");
    for stream in listener.incoming().flatten() {
        thread::spawn(move || drop(answer(stream)));
    }
    Ok(())
}

fn answer(stream: TcpStream) -> Outcome {
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut request = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    request.read_line(&mut first)?;
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = first.split(' ').nth(1).unwrap_or("/");
    let (status, body) = match path {
        "/" => ("200 OK", name()),
        "/healthz" | "/readyz" => ("200 OK", "ok".to_owned()),
        "/config" => ("200 OK", fs::read_to_string("/etc/demo/config/greeting")?),
        "/secret" => ("200 OK", fs::read_to_string("/etc/demo/secret/password")?),
        "/version" => ("200 OK", env::var("DEMO_VERSION").unwrap_or_default()),
        _ => ("404 Not Found", "no such page".to_owned()),
    };
    if !matches!(path, "/healthz" | "/readyz") {
        println!("GET {path} {status}");
    }
    let length = body.len();
    write!(
        &stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    Ok(())
}

fn name() -> String {
    env::var("POD_NAME")
        .or_else(|_| {
            fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned())
        })
        .unwrap_or_default()
}

fn get(url: &str, times: u32) -> Outcome {
    let rest = url
        .strip_prefix("http://")
        .ok_or("a URL starts with http://")?;
    let (address, path) = rest.split_once('/').unwrap_or((rest, ""));
    for _ in 0..times {
        let mut stream = TcpStream::connect_timeout(&address.parse()?, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        write!(
            stream,
            "GET /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
        )?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        let (head, body) = reply
            .split_once("\r\n\r\n")
            .ok_or("the reply has no end of headers")?;
        if !head.contains(" 200 ") {
            return Err(head.lines().next().unwrap_or_default().into());
        }
        println!("{body}");
    }
    Ok(())
}

fn cat(file: &str) -> Outcome {
    std::io::stdout().write_all(&fs::read(file)?)?;
    Ok(())
}

fn count(pause: u64) -> Outcome {
    for number in 0u64.. {
        println!("{number}");
        thread::sleep(Duration::from_millis(pause));
    }
    Ok(())
}

fn lines() -> Outcome {
    for line in std::io::stdin().lines() {
        println!("read {}", line?);
    }
    Ok(())
}

fn eat(mebibytes: usize) -> Outcome {
    let mut eaten = Vec::new();
    for count in 1..=mebibytes {
        eaten.push(vec![1u8; 1 << 20]);
        println!("{count} MiB");
    }
    thread::sleep(Duration::from_secs(3600));
    drop(eaten);
    Ok(())
}
