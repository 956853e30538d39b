//! Which addresses a server may have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};

use crate::{Error, Result};

/// The addresses of `address`, an `ADDRESS:PORT`. `public` allows those that the internet may know.
///
/// # Errors
/// [`Error::Option`] for one that is none, or is public and not allowed.
pub(super) fn resolved(address: &str, public: bool) -> Result<Vec<SocketAddr>> {
    let found = address.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
    let found = found.map_err(|error| {
        let wrong = Error::option("--bind", "ADDRESS:PORT", format!("{address}: {error}"));
        wrong.with_hint("as in 127.0.0.1:7007, 192.168.1.5:7007 or [::1]:7007; port 0 is any that is free")
    })?;
    if let Some(open) = found.iter().find(|found| !public && !is_private(found.ip())) {
        let expected = "an address of a private network: all who reach the server may use the device";
        let wrong = Error::option("--bind", expected, open.to_string());
        return Err(wrong.with_hint(
            "bind it to 127.0.0.1 and go through a tunnel (`ssh -L`), or add --allow-public-address behind a firewall of your own",
        ));
    }
    Ok(found)
}

/// Whether the internet does not know an address: loopback, private (RFC 1918, RFC 4193), link-local, and those that carriers and overlay
/// networks share among their own (RFC 6598).
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => is_private_v4(mapped),
            None => is_private_v6(address),
        },
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    address.is_loopback() || address.is_private() || address.is_link_local() || (a == 100 && (64..128).contains(&b))
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_told_from_others() {
        for private in ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.5", "169.254.1.1", "100.64.0.1"] {
            assert!(is_private(private.parse().unwrap()), "{private}");
            assert!(is_private(format!("::ffff:{private}").parse().unwrap()), "{private}");
        }
        for private in ["::1", "fd00::1", "fe80::1"] {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in ["0.0.0.0", "8.8.8.8", "172.32.0.1", "100.128.0.1", "::", "2001:db8::1", "::ffff:8.8.8.8"] {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn public_addresses_are_refused_unless_allowed() {
        let refused = resolved("0.0.0.0:0", false).unwrap_err().to_string();
        assert!(refused.contains("--bind") && refused.contains("private network"), "{refused}");
        assert_eq!(resolved("0.0.0.0:0", true).unwrap().len(), 1);
        assert_eq!(resolved("[::1]:7007", false).unwrap()[0].port(), 7007);
        for none in ["", "127.0.0.1", "127.0.0.1:x", "::1", "127.0.0.1:70000"] {
            assert!(resolved(none, true).is_err(), "{none}");
        }
    }
}
