//! What a connection through a Service costs beside a direct one. A measurement, not a promise: run it by hand with
//! `cargo test -p proxy --test service -- --ignored --nocapture measure`.

use crate::lab::{Lab, Namespace, PORT};
use crate::{Api, config, service, slice, start};
use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

fn connect(from: &Namespace, to: SocketAddr) -> Duration {
    from.run(move || {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(to).expect("connected");
        let took = begun.elapsed();
        let _ = stream.read_to_end(&mut Vec::new());
        took
    })
}

#[test]
#[ignore = "a measurement, to be read by a person"]
fn connections_through_a_service_and_direct() {
    const ROUNDS: usize = 2_000;
    let lab = Lab::new(4);
    for others in [0, 10_000] {
        let api = Api::default();
        crate::rules::many(&api, others);
        api.apply(service("10.96.200.10"));
        let pods: Vec<IpAddr> = lab.pods.iter().map(|pod| pod.address).collect();
        api.apply(slice(&pods[1..]));
        let _running = start(&api, &lab.node, config());
        let through = SocketAddr::new("10.96.200.10".parse().expect("address"), 80);
        let from = &lab.pods[0].namespace;
        let measure = |to: &dyn Fn(usize) -> SocketAddr| {
            let mut times: Vec<Duration> =
                (0..ROUNDS).map(|round| connect(from, to(round))).collect();
            times.sort_unstable();
            format!(
                "p50 {:?} p90 {:?}",
                times[ROUNDS / 2],
                times[ROUNDS * 9 / 10]
            )
        };
        let direct = measure(&|round| SocketAddr::new(pods[1 + round % 3], PORT));
        let through = measure(&|_| through);
        println!("{others} other Services: direct {direct}, through the Service {through}");
    }
}
