//! Any bytes: no panic, bounded memory. The long run is the fuzz target of the same name.

use bytes::BytesMut;
use proptest::prelude::*;

use super::super::fuzz::fuzz_session;
use super::support::*;
use crate::amqp::method::{Method, basic, channel, confirm, connection, queue, tx};

pub(super) fn any_method() -> impl Strategy<Value = Method> {
    let tag = 0u64..4;
    prop_oneof![
        Just(channel::Open::default().into()),
        Just(channel::Close::default().into()),
        Just(channel::CloseOk {}.into()),
        Just(channel::Flow { active: true }.into()),
        Just(connection::Close::default().into()),
        any::<bool>().prop_map(|nowait| confirm::Select { nowait }.into()),
        Just(tx::Select {}.into()),
        Just(tx::Commit {}.into()),
        Just(tx::Rollback {}.into()),
        any::<bool>().prop_map(|nowait| queue::Declare {
            nowait,
            ..Default::default()
        }
        .into()),
        Just(queue::Bind::default().into()),
        Just(
            basic::Get {
                queue: short("q"),
                ..Default::default()
            }
            .into()
        ),
        Just(
            basic::Consume {
                queue: short("q"),
                ..Default::default()
            }
            .into()
        ),
        Just(
            basic::Qos {
                global: true,
                ..Default::default()
            }
            .into()
        ),
        Just(basic::Recover { requeue: true }.into()),
        any::<bool>().prop_map(|mandatory| basic::Publish {
            mandatory,
            ..Default::default()
        }
        .into()),
        (tag, any::<bool>()).prop_map(|(delivery_tag, multiple)| basic::Ack {
            delivery_tag,
            multiple
        }
        .into()),
    ]
}

fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let method = (0u16..4, any_method()).prop_map(|(channel, method)| {
        let mut bytes = BytesMut::new();
        method.encode(&mut bytes, channel);
        bytes.to_vec()
    });
    let publish = (1u16..4, any::<bool>(), 0usize..300).prop_map(|(channel, mandatory, size)| {
        let mut peer = Peer::new(crate::session::SessionOptions::default());
        peer.publish(channel, mandatory, &vec![b'x'; size]);
        peer.input.to_vec()
    });
    let garbage = prop::collection::vec(any::<u8>(), 0..30);
    prop_oneof![8 => method, 4 => publish, 1 => garbage]
}

proptest! {
    #[test]
    fn any_bytes_are_survived(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzz_session(&data);
    }

    #[test]
    fn any_frames_are_survived(choice in any::<u8>(), frames in prop::collection::vec(any_frame(), 0..60)) {
        let mut data = vec![choice | 1];
        data.extend(frames.concat());
        fuzz_session(&data);
    }
}
