//! A device of another machine, over loopback: its results are those of the server's device, to the bit, and a server serves on
//! whatever it is sent.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, thread};

use pinhole::ggml::{AttentionMode, Buffer, CancelFlag, Convolution, Device, DeviceKind, Graph, Normalisation, Tensor};
use pinhole::rpc::{Heard, Lending, Server};
use pinhole::{Error, Result};
use pinhole_quant::{DType, rows};

use crate::array::Array;
use crate::rig::{Rig, THREADS, read};

/// What a server of these tests has.
const VRAM: usize = 64 << 20;

/// Calls `with` with the address of a server, and with the server.
pub(crate) fn served<R>(with: impl FnOnce(SocketAddr, &Server) -> R) -> R {
    let device = Device::by_name("cpu:discrete").unwrap();
    let server = Server::bind("127.0.0.1:0", false, Lending { device, threads: THREADS, vram: VRAM }).unwrap();
    let stop = CancelFlag::new();
    /// Stops the server however the test ends.
    struct Stop<'a>(&'a CancelFlag);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.raise();
        }
    }
    thread::scope(|scope| {
        scope.spawn(|| server.run(&stop, &|_: Heard| ()).unwrap());
        let _stop = Stop(&stop);
        with(server.address(), &server)
    })
}

fn remote(address: SocketAddr) -> Result<Device> {
    Device::by_name(&format!("rpc:{address}"))
}

/// What every operation makes of some numbers.
fn everything(rig: &mut Rig) -> Vec<Vec<f32>> {
    let (a, b) = (rig.f32(&Array::random([64, 6, 2, 1], 1)), rig.f32(&Array::random([64, 6, 2, 1], 2)));
    let blocks = Array::random([64, 8, 1, 1], 3).f32();
    let mut codes = vec![0; DType::Q8_0.row_bytes(64).unwrap() * 8];
    rows::quantize(DType::Q8_0, &blocks, 64, &mut codes).unwrap();
    let weights = rig.place(DType::Q8_0, [64, 8, 1, 1], &codes);
    let (bias, looked_up) = (rig.f32(&Array::random([8, 1, 1, 1], 4)), rig.i32(&[3, 0, 7]));
    let picture = rig.f32(&Array::random([10, 6, 8, 1], 5));
    let kernel = rig.f32(&Array::random([3, 3, 8, 8], 6));
    let out = rig.f32(&Array::from_fn([64, 12, 2, 1], |_| f64::NAN));
    let mut results = Vec::new();
    let mut run = |build: &dyn Fn(&Graph) -> Result<Tensor>| {
        results.push(rig.run(build).unwrap().f32());
    };
    run(&|g| {
        let (a, b) = (g.leaf(&a)?, g.leaf(&b)?);
        let sum = g.sub(g.add(a, g.mul(a, b)?)?, g.scale_bias(b, 0.3, -1.0)?)?;
        let curves =
            [g.silu(sum)?, g.tanh(sum)?, g.gelu_tanh(sum)?, g.gelu_erf(sum)?, g.gelu_quick(sum)?, g.relu(sum)?];
        let norms = g.add(g.norm(sum, 1e-5)?, g.rms_norm(g.roll(sum, 5)?, 1e-6)?)?;
        curves.into_iter().try_fold(norms, |sum, curve| g.add(sum, curve))
    });
    run(&|g| {
        let (x, w) = (g.leaf(&a)?, g.leaf(&weights)?);
        let rows = g.get_rows(w, g.leaf(&looked_up)?)?;
        let product = g.linear(w, x, g.leaf(&bias)?)?;
        g.concat(g.reshape(product, &[8, 12])?, g.mul_mat(w, rows)?, 1)
    });
    run(&|g| {
        g.set_attention(AttentionMode::Exact);
        let (q, k) = (g.leaf(&a)?, g.leaf(&b)?);
        let v = g.contiguous(g.slice(q, 1, 0, 6)?)?;
        g.flash_attention(q, k, v, 0.125, None)
    });
    run(&|g| {
        let (x, kernel) = (g.leaf(&picture)?, g.leaf(&kernel)?);
        let doubled = g.pad(g.upscale_2x(g.group_norm(x, 2, 1e-5)?)?, 1, 2)?;
        g.conv_2d(kernel, doubled, 1, 1)
    });
    run(&|g| {
        let (x, kernel, bias) = (g.leaf(&picture)?, g.leaf(&kernel)?, g.leaf(&bias)?);
        let convolution =
            Convolution { kernel, bias: Some(bias), stride: 1, beside: 1, around: [1, 1], doubled: None, odd: false };
        let normal = g.group_statistics(x, 2, 1e-5)?;
        let normal = normal.map(|(mean, scale)| Normalisation { mean, scale, weight: bias, bias });
        let own = g.convolve(&convolution, x, normal.as_ref(), None)?;
        let normed = g.channel_norm_silu(x, bias, 1e-6)?;
        own.map_or(Ok(normed), |own| g.add(own, normed))
    });
    run(&|g| {
        let heads = g.permute(g.split_rows(g.leaf(&a)?, 2)?, [0, 1, 2, 3])?;
        let table = g.reshape(g.slice(g.leaf(&b)?, 1, 0, 3)?, &[32, 1, 12])?;
        let table = g.slice(table, 2, 0, 6)?;
        let turned = g.rotate_pairs(g.slice(heads, 3, 0, 1)?, table, table)?;
        g.add(turned, g.rotate_halves(turned, table, table)?)
    });
    let graph = rig.graph();
    let (value, target) = (graph.leaf(&a).unwrap(), graph.leaf(&out).unwrap());
    graph.fill(target, 1, 0, value).unwrap();
    graph.fill(target, 1, 6, graph.soft_max(value, None, 0.5).unwrap()).unwrap();
    rig.compute(&graph).unwrap();
    results.push(read(&out));
    results
}

#[test]
fn every_operation_is_that_of_the_servers_device() {
    let expected = everything(&mut Rig::on(Device::by_name("cpu:discrete").unwrap()));
    served(|address, server| {
        let device = remote(address).unwrap();
        assert_eq!((device.kind(), device.name()), (DeviceKind::Discrete, format!("rpc:{address}")));
        assert!(device.rounds_as(Device::cpu().unwrap()) && device.description().starts_with("cpu:discrete there"));
        let mut rig = Rig::on(device);
        let bits =
            |all: &[Vec<f32>]| all.iter().map(|one| one.iter().map(|x| x.to_bits()).collect()).collect::<Vec<Vec<_>>>();
        assert_eq!(bits(&everything(&mut rig)), bits(&expected));
        // What the client has counted is what the server has.
        let (free, total) = device.memory().unwrap();
        assert_eq!((total, server.usage().total), (VRAM, total - free));
        assert_eq!(total - free, rig.ledger.usage().total);
        let (place, ledger) = (rig.f32(&Array::random([64, 8, 1, 1], 1)), rig.ledger.clone());
        assert_eq!(device.memory().unwrap().0, total - ledger.usage().total);
        drop(place);
        assert_eq!(device.memory().unwrap().0, total - ledger.usage().total);
    });
}

#[test]
fn what_a_server_refuses_is_an_error() {
    served(|address, server| {
        let device = remote(address).unwrap();
        let mut rig = Rig::on(device);
        let refused = Buffer::allocate(device, VRAM + 1, &rig.ledger, "ports").map(|_| ()).unwrap_err();
        assert!(matches!(refused, Error::OutOfMemory { .. }) && refused.to_string().contains("rpc:"), "{refused}");
        assert_eq!((rig.ledger.usage().total, server.usage().total), (0, 0));
        // All of it is there, to the byte.
        drop(Buffer::allocate(device, VRAM, &rig.ledger, "ports").unwrap());
        // A row that its table does not have is seen there.
        let (table, rows) = (rig.f32(&Array::random([4, 3, 1, 1], 1)), rig.i32(&[3]));
        let refused = rig.run(|g| g.get_rows(g.leaf(&table)?, g.leaf(&rows)?)).unwrap_err().to_string();
        assert!(refused.contains("row 3 of a table of 3"), "{refused}");
        rig.assert_works();
        rig.cancel.raise();
        let a = rig.f32(&Array::random([4, 3, 1, 1], 1));
        assert!(matches!(rig.run(|g| g.silu(g.leaf(&a)?)), Err(Error::Cancelled)));
        rig.cancel = CancelFlag::new();
        rig.backend.set_cancel(rig.cancel.clone());
        rig.assert_works();
    });
}

/// A server that sends `answer` to the client that comes, and goes.
fn answering(answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(answer).unwrap();
        stream.read_exact(&mut [0; 12]).unwrap();
    });
    address
}

#[test]
fn servers_that_are_none_are_told_from_others() {
    let said = |address: SocketAddr| match remote(address) {
        Ok(device) => panic!("{device:?}"),
        Err(error @ Error::Device { .. }) => error.to_string(),
        Err(other) => panic!("{other:?}"),
    };
    let other = said(answering(b"pinhole\n\x09\0\0\0"));
    assert!(other.contains("version 9") && other.contains("this pinhole 1"), "{other}");
    assert!(said(answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")).contains("no pinhole rpc-server"));
    assert!(said(answering(b"pin")).contains("closed the connection"));
    assert!(said(answering(b"pinhole\n\x01\0\0\0\xFF\xFF\xFF\xFF\0\0\0\0")).contains("makes no sense"));
    let unreachable = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(said(unreachable).contains("cannot be reached"));
    let none = Device::by_name("rpc:nowhere").unwrap_err().to_string();
    assert!(none.contains("no HOST:PORT"), "{none}");
    served(|address, _| {
        let mut first = TcpStream::connect(address).unwrap();
        first.write_all(b"pinhole\n\x01\0\0\0").unwrap();
        first.read_exact(&mut [0; 12]).unwrap();
        let busy = said(address);
        assert!(busy.contains("another client") && busy.contains(&first.local_addr().unwrap().to_string()), "{busy}");
    });
}

#[test]
fn public_addresses_and_far_devices_are_not_lent() {
    let device = Device::cpu().unwrap();
    let lending = Lending { device, threads: 1, vram: VRAM };
    let refused = Server::bind("0.0.0.0:0", false, lending).unwrap_err();
    assert!(
        refused.to_string().contains("private network") && refused.hint().unwrap().contains("--allow-public-address")
    );
    assert!(Server::bind("0.0.0.0:0", true, lending).is_ok());
    assert!(Server::bind("nowhere", true, lending).is_err());
    served(|address, _| {
        let far = Lending { device: remote(address).unwrap(), ..lending };
        assert!(Server::bind("127.0.0.1:0", false, far).is_err());
    });
}

/// Goes between a client and the server at `to`, and keeps what the client sends. Each answer takes `delay` longer.
fn between(to: SocketAddr, delay: Duration) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, sent) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(Vec::new())));
    let kept = Arc::clone(&sent);
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut server = TcpStream::connect(to).unwrap();
        let (mut back, mut forth) = (server.try_clone().unwrap(), client.try_clone().unwrap());
        thread::spawn(move || {
            let mut bytes = [0; 1 << 16];
            while let Ok(count @ 1..) = back.read(&mut bytes) {
                thread::sleep(delay);
                if forth.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            let _ = forth.shutdown(std::net::Shutdown::Both);
        });
        let mut bytes = [0; 1 << 16];
        while let Ok(count @ 1..) = client.read(&mut bytes) {
            kept.lock().unwrap().extend(&bytes[..count]);
            if server.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = server.shutdown(std::net::Shutdown::Both);
    });
    (address, sent)
}

#[test]
fn a_server_that_answers_slowly_is_waited_for() {
    served(|address, _| {
        let (slow, _) = between(address, Duration::from_millis(120));
        let mut rig = Rig::on(remote(slow).unwrap());
        rig.assert_works();
    });
}

#[test]
fn a_server_that_is_gone_is_an_error_until_it_is_back() {
    let (device, mut rig) = served(|address, _| {
        let device = remote(address).unwrap();
        let mut rig = Rig::on(device);
        rig.assert_works();
        (device, rig)
    });
    let gone = Buffer::allocate(device, 64, &rig.ledger, "ports").map(|_| ()).unwrap_err();
    assert!(gone.to_string().contains(&device.name()), "{gone}");
    assert!(
        gone.to_string().contains("closed the connection") || gone.to_string().contains("cannot be reached"),
        "{gone}"
    );
    assert!(rig.backend.is_lost() && rig.backend.recover().is_err() && device.memory().is_err());
    assert_eq!(rig.ledger.usage().total, 0);
}

/// The frames that a client sent: after the introduction, the text and the bytes of each.
fn frames(sent: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut rest, mut frames) = (&sent[12..], Vec::new());
    while let Some((lengths, after)) = rest.split_at_checked(8) {
        let [text, bytes] = [0, 4].map(|at| u32::from_le_bytes(lengths[at..at + 4].try_into().unwrap()) as usize);
        let Some((frame, after)) = after.split_at_checked(text + bytes) else { break };
        frames.push((frame[..text].to_vec(), frame[text..].to_vec()));
        rest = after;
    }
    frames
}

/// What a hostile client may do to a frame.
fn bend((text, bytes): &(Vec<u8>, Vec<u8>), numbers: &mut Numbers) -> Vec<u8> {
    let (mut text, mut bytes) = (text.clone(), bytes.clone());
    let mut below = |most: usize| numbers.below(most);
    let digits: Vec<usize> = (0..text.len()).filter(|&i| text[i].is_ascii_digit()).collect();
    match below(8) {
        // Another number: operands, extents, offsets, formats, bits.
        0..=4 if !digits.is_empty() => {
            let numbers: [&[u8]; 12] = [
                b"0",
                b"1",
                b"2",
                b"3",
                b"7",
                b"31",
                b"4096",
                b"65537",
                b"4294967295",
                b"4294967296",
                b"9223372036854775807",
                b"18446744073709551615",
            ];
            let start = digits[below(digits.len())];
            let end = start + text[start..].iter().take_while(|c| c.is_ascii_digit()).count();
            text.splice(start..end, numbers[below(numbers.len())].iter().copied());
        }
        // Another word, as likely as not another message.
        5 => {
            let words: [(&str, &str); 6] = [
                ("Add", "MulMat"),
                ("Leaf", "Output"),
                ("Contiguous", "Silu"),
                ("Define", "Measure"),
                ("Norm", "Tanh"),
                ("null", "0"),
            ];
            let (from, to) = words[below(words.len())];
            text = String::from_utf8_lossy(&text).replacen(from, to, 1 + below(3)).into_bytes();
        }
        6 if !bytes.is_empty() => {
            for _ in 0..1 + below(16) {
                let at = below(bytes.len());
                bytes[at] = below(256) as u8;
            }
        }
        _ => {
            let at = below(text.len());
            text[at] = below(256) as u8;
        }
    }
    let mut lengths = [text.len() as u32, bytes.len() as u32];
    if below(40) == 0 {
        lengths[below(2)] = [0, 1, 1 << 20, u32::MAX][below(4)];
    }
    let mut frame: Vec<u8> = lengths.iter().flat_map(|length| length.to_le_bytes()).collect();
    frame.extend(text);
    frame.extend(bytes);
    frame
}

/// Numbers without end (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) as usize % most.max(1)
    }
}

/// A connection to the server at `address` that has been told what it computes on, once the one before is gone.
fn introduced(address: SocketAddr) -> TcpStream {
    loop {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"pinhole\n\x01\0\0\0").unwrap();
        let mut lengths = [0; 20];
        stream.read_exact(&mut lengths).unwrap();
        let mut greeting = vec![0; u32::from_le_bytes(lengths[12..16].try_into().unwrap()) as usize];
        stream.read_exact(&mut greeting).unwrap();
        if greeting.starts_with(b"{\"Ready\"") {
            return stream;
        }
    }
}

/// Sends what a client sent with some of it bent, left out or said twice, for a few seconds; `PINHOLE_FUZZ_SECONDS` says for how many.
#[test]
fn no_message_brings_a_server_down() {
    let seconds = env::var("PINHOLE_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let (mut numbers, mut sessions, mut sent) = (Numbers(1), 0, 0);
    let (frames, expected) = served(|address, _| {
        let (recording, said) = between(address, Duration::ZERO);
        let expected = everything(&mut Rig::on(remote(recording).unwrap()));
        let said = said.lock().unwrap();
        (frames(&said), expected)
    });
    let settle = (b"\"Settle\"".to_vec(), Vec::new());
    served(|address, server| {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds) {
            let mut stream = introduced(address);
            sessions += 1;
            let mut answers = stream.try_clone().unwrap();
            let hearing = thread::spawn(move || std::io::copy(&mut answers, &mut std::io::sink()));
            for frame in &frames {
                let bent = match numbers.below(30) {
                    0 => continue,
                    1 => [whole(frame), whole(frame)].concat(),
                    2..=3 => bend(frame, &mut numbers),
                    // What failed before does not keep it from computing.
                    4..=7 => [whole(&settle), whole(frame)].concat(),
                    _ => whole(frame),
                };
                sent += 1;
                if stream.write_all(&bent).is_err() {
                    break;
                }
            }
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = hearing.join().unwrap();
            assert!(server.usage().peak <= VRAM);
        }
        println!("{sent} messages in {sessions} sessions");
        assert!(sessions > 10, "{sessions}");
        // The one before is gone when the next is served.
        drop(introduced(address));
        let device = loop {
            if let Ok(device) = remote(address) {
                break device;
            }
        };
        let found = everything(&mut Rig::on(device));
        assert!(found.iter().flatten().map(|x| x.to_bits()).eq(expected.iter().flatten().map(|x| x.to_bits())));
    });
}

fn whole((text, bytes): &(Vec<u8>, Vec<u8>)) -> Vec<u8> {
    let lengths = [text.len(), bytes.len()].map(|length| (length as u32).to_le_bytes());
    [lengths.concat(), text.clone(), bytes.clone()].concat()
}
