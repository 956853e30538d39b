//! The address of a queue: servers of NATS, and the queue's name.

use std::fmt;
use std::str::FromStr;

use async_nats::ServerAddr;
use url::Url;

/// The queue of an address that names none.
const NAME: &str = "pinhole";

/// Where a queue is: `nats://HOST[:PORT][/NAME]`, or several of one cluster with commas between them.
#[derive(Clone, PartialEq, Eq)]
pub struct QueueAddress {
    /// Servers of one cluster.
    pub servers: Vec<ServerAddr>,
    /// The name of the queue: of its stream, and what its subjects begin with.
    pub name: String,
    /// Who asks, or a token where there is no password.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
}

/// Without secrets.
impl fmt::Display for QueueAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for server in &self.servers {
            write!(f, "{}://{}:{},", server.scheme(), server.host(), server.port())?;
        }
        write!(f, " queue {}", self.name)
    }
}

impl fmt::Debug for QueueAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for QueueAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<QueueAddress, String> {
        let mut address = QueueAddress { servers: Vec::new(), name: NAME.to_owned(), user: None, password: None };
        for server in text.split(',') {
            let expected = || "expected nats://HOST[:PORT][/NAME], or tls:// instead".to_owned();
            let mut url = Url::parse(server).map_err(|_| expected())?;
            let has_host = url.host_str().is_some_and(|host| !host.is_empty());
            if !matches!(url.scheme(), "nats" | "tls") || !has_host || url.query().is_some() || url.fragment().is_some()
            {
                return Err(expected());
            }
            let name = url.path().trim_start_matches('/');
            if !name.is_empty() {
                address.name = name.to_owned();
            }
            if !url.username().is_empty() {
                address.user = Some(url.username().to_owned());
                address.password = url.password().map(str::to_owned);
            }
            url.set_path("");
            // They are told by themselves, and shown nowhere.
            let _ = url.set_username("").and_then(|()| url.set_password(None));
            address.servers.push(ServerAddr::from_url(url).map_err(|error| error.to_string())?);
        }
        let is_name = address.name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
        match is_name && address.name.len() <= 64 {
            true => Ok(address),
            false => Err(format!("`{}` is no name of a queue: expected letters, digits, `-` and `_`", address.name)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<QueueAddress, String> {
        text.parse()
    }

    #[test]
    fn an_address_names_servers_and_a_queue() {
        let plain = parse("nats://queue.lan").unwrap();
        assert_eq!((plain.name.as_str(), plain.servers[0].port(), plain.user), ("pinhole", 4222, None));
        let two = parse("nats://a:4223,tls://b:4224/large-models").unwrap();
        let hosts: Vec<_> = two.servers.iter().map(|server| (server.host(), server.port())).collect();
        assert_eq!((hosts, two.name.as_str()), (vec![("a", 4223), ("b", 4224)], "large-models"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let address = parse("nats://anna:secret@queue.lan/big").unwrap();
        assert_eq!((address.user.as_deref(), address.password.as_deref()), (Some("anna"), Some("secret")));
        let shown = format!("{address} {address:?}");
        assert!(!shown.contains("secret") && !shown.contains("anna") && shown.contains("nats://queue.lan:4222"));
        let token = parse("nats://token@queue.lan").unwrap();
        assert_eq!((token.user.as_deref(), token.password), (Some("token"), None));
    }

    #[test]
    fn other_addresses_are_refused() {
        for text in [
            "",
            "64",
            "queue.lan",
            "http://queue.lan",
            "nats://",
            "nats://a/b/c",
            "nats://a/b.c",
            "nats://a/*",
            "nats://a,",
            "nats://a?b=c",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
