//! Attached clients: from their socket to the container's input, and their end.

use super::attached::Attached;
use super::protocol::FromScribe;
use super::server::{Scribe, Source};
use crate::keeper::poll::{Received, Token};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use std::os::fd::OwnedFd;

impl Scribe {
    pub(super) fn attach(&mut self, id: &str, fds: Vec<OwnedFd>) {
        let Some(socket) = fds.into_iter().next() else {
            return;
        };
        if self
            .containers
            .get(id)
            .is_none_or(|container| container.drained)
        {
            return; // closing the socket tells the client that there is nothing
        }
        let token = self.token(Source::Client { id: id.to_owned() });
        if self.poller.add(&socket, token, EventFlags::IN).is_err() {
            self.sources.remove(&token);
            return;
        }
        if let Some(container) = self.containers.get_mut(id) {
            container.clients.push(Attached::new(socket, token));
        }
    }

    pub(super) fn handle_client(&mut self, id: &str, token: Token, flags: EventFlags) {
        let Some(client) = self.client(id, token) else {
            return;
        };
        if client.peer.flush().is_err() || flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            self.read_client(id, token); // its last words
            self.drop_client(id, token);
            return;
        }
        if client.ending && client.peer.backlog() == 0 {
            self.drop_client(id, token);
            return;
        }
        let caught_up = flags.contains(EventFlags::OUT) && client.behind().is_none();
        if flags.contains(EventFlags::IN) {
            self.read_client(id, token);
        }
        if caught_up {
            let streams = self
                .containers
                .get(id)
                .map_or(0, |container| container.outputs.len());
            (0..streams).for_each(|stream| self.make_ready(id, stream));
        }
        self.watch_client(id, token);
    }

    /// Takes input from the client as long as the container takes it.
    fn read_client(&mut self, id: &str, token: Token) {
        let mut buffer = Vec::new();
        loop {
            let Some(client) = self.client(id, token) else {
                return;
            };
            if client.input_ended || !client.input.is_empty() {
                return;
            }
            match client.peer.recv(&mut buffer) {
                Received::Nothing => return,
                Received::Message(message) => client.input = message.data,
                Received::End => client.input_ended = true,
            }
            self.give_input(id);
        }
    }

    /// Writes the clients' input to the container, and ends it if it was the only one's.
    pub(super) fn give_input(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let mut blocked = false;
        for client in &mut container.clients {
            let Some(stdin) = &container.stdin else {
                client.input.clear(); // a container without input: what is typed is nobody's
                continue;
            };
            while !client.input.is_empty() && !blocked {
                match rustix::io::write(stdin, &client.input) {
                    Ok(count) => drop(client.input.drain(..count)),
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => blocked = true,
                    // EIO: the terminal's other side is closed.
                    Err(_) => client.input.clear(),
                }
            }
        }
        let ended = container
            .clients
            .iter()
            .any(|client| client.input_ended && client.input.is_empty());
        let close =
            ended && container.io.stdin_once && !container.io.terminal && container.stdin.is_some();
        let tokens: Vec<_> = container
            .clients
            .iter()
            .map(|client| client.token)
            .collect();
        self.watch_stdin(id, blocked);
        if close {
            if let Some(container) = self.containers.get_mut(id) {
                container.stdin = None;
            }
            self.tell_keeper(&FromScribe::StdinClosed { id: id.to_owned() });
        }
        tokens
            .into_iter()
            .for_each(|token| self.watch_client(id, token));
    }

    /// Watches the container's input for room exactly while somebody waits for it.
    fn watch_stdin(&mut self, id: &str, blocked: bool) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let Some(stdin) = &container.stdin else {
            return;
        };
        match (container.stdin_token, blocked) {
            (None, true) => {
                let token = self.token(Source::Stdin { id: id.to_owned() });
                let Some(container) = self.containers.get_mut(id) else {
                    return;
                };
                container.stdin_token = Some(token);
                if let Some(stdin) = &container.stdin
                    && let Err(error) = self.poller.add(stdin, token, EventFlags::OUT)
                {
                    self.log(format!("{id}: {error}"));
                }
            }
            (Some(token), false) => {
                self.poller.remove(stdin);
                self.sources.remove(&token);
                if let Some(container) = self.containers.get_mut(id) {
                    container.stdin_token = None;
                }
            }
            _ => {}
        }
    }

    fn client(&mut self, id: &str, token: Token) -> Option<&mut Attached> {
        self.containers
            .get_mut(id)?
            .clients
            .iter_mut()
            .find(|client| client.token == token)
    }

    pub(super) fn watch_client(&mut self, id: &str, token: Token) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(client) = container
            .clients
            .iter_mut()
            .find(|client| client.token == token)
        else {
            return;
        };
        let interest = client.interest();
        if interest != client.watched_for
            && self
                .poller
                .modify(&client.peer.socket, token, interest)
                .is_ok()
        {
            client.watched_for = interest;
        }
    }

    pub(super) fn drop_client(&mut self, id: &str, token: Token) {
        self.sources.remove(&token);
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let Some(index) = container
            .clients
            .iter()
            .position(|client| client.token == token)
        else {
            return;
        };
        let mut client = container.clients.remove(index);
        self.poller.remove(&client.peer.socket);
        // Gone is as good as an end of input.
        if !std::mem::replace(&mut client.input_ended, true)
            && container.io.stdin_once
            && !container.io.terminal
            && container.stdin.take().is_some()
        {
            self.tell_keeper(&FromScribe::StdinClosed { id: id.to_owned() });
        }
    }

    /// The container has ended, and all of its output is on its way: clients go when they have it.
    pub(super) fn end_clients(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        let mut done = Vec::new();
        for client in &mut container.clients {
            client.ending = true;
            if client.peer.backlog() == 0 {
                done.push(client.token);
            }
        }
        done.into_iter()
            .for_each(|token| self.drop_client(id, token));
    }
}
