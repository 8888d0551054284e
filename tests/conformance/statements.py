"""All normative statements of MQTT 3.1.1 and 5.0, in our own few words, and what this gateway makes of each.

One line each: ``number | verdict | what is demanded | reason``.  Verdicts: T tested (by the tests that name it, see
``proofs.py``), N does not concern us, D deviates on purpose; N and D have a reason, one of :data:`REASONS` or their
own.  Numbers are those of the OASIS Standards (3.1.1: 2014-10-29, 5.0: 2019-03-07); appendix 4.2.0-1 of 5.0 is 4.2-1 in
its text.  ``services/gateway/CONFORMANCE.md`` is made from this.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

REASONS: Final = {
    "client": "the client's duty, which a server cannot see broken",
    "router": "nothing is routed from one client to another; only commands go down, each to its own vehicle",
    "retain": "nothing is retained; MQTT 5 clients are told so (retain available 0)",
    "session": "no session outlives its connection; clients are told so (session present 0, session expiry 0)",
    "share": "shared subscriptions are refused (shared subscription available 0)",
    "subid": "subscription identifiers are refused (subscription identifier available 0)",
    "auth": "no extended authentication is offered: no AUTH is ever sent, and a method is refused with 0x8C",
    "ws": "no WebSocket listener",
    "qos2": "nothing is sent down at QoS 2: 1 is the most that is granted",
    "bare": "no reason string and no user property is ever sent in this packet",
    "will": "a will is kept, and told as an event when its client vanishes: nothing goes to other clients",
    "vin": "the VIN does, by user name, client identifier or certificate: terminals may share client identifiers",
    "again": "nothing is sent again within a connection, and no session outlives it",
    "away": "an absent journal is waited for: reading stops, acknowledgements pause, nothing is lost",
    "one": "no server-to-server connections; the bridge is a client",
}


class Verdict(StrEnum):
    TESTED = "tested"
    NO_CONCERN = "does not concern us"
    DEVIATES = "deviates on purpose"


@dataclass(frozen=True, slots=True)
class Statement:
    """``version`` is "3.1.1" or "5"; ``reason`` is "" when it is tested."""

    version: str
    number: str
    verdict: Verdict
    text: str
    reason: str

    @property
    def id(self) -> str:
        """Its name in tests: mqtt5_3_1_2_24."""
        return f"mqtt{self.version.replace('.', '')}_{self.number.replace('.', '_').replace('-', '_')}"


MQTT_311: Final = """
1.5.3-1 | T | ill-formed UTF-8 closes the connection
1.5.3-2 | T | U+0000 in a string closes the connection
1.5.3-3 | T | EF BB BF is U+FEFF anywhere and is not stripped
2.2.2-1 | T | reserved flag bits have the listed value
2.2.2-2 | T | invalid flags close the connection
2.3.1-1 | T | SUBSCRIBE, UNSUBSCRIBE and PUBLISH above QoS 0 have a packet identifier that is not 0
2.3.1-2 | N | a client assigns unused packet identifiers | client
2.3.1-3 | N | a client sends again with the same identifier | client
2.3.1-4 | T | the same holds for a server that publishes
2.3.1-5 | T | a PUBLISH at QoS 0 has no packet identifier
2.3.1-6 | T | PUBACK, PUBREC, PUBREL have the identifier of their PUBLISH
2.3.1-7 | T | SUBACK and UNSUBACK have the identifier of what they answer
3.1.0-1 | T | the first packet of a client is CONNECT
3.1.0-2 | T | a second CONNECT is a violation and ends the connection
3.1.2-1 | T | a wrong protocol name is not served as this protocol
3.1.2-2 | T | an unsupported level is answered with return code 1, then closed
3.1.2-3 | T | the reserved connect flag must be 0, else the client is disconnected
3.1.2-4 | D | clean session 0 resumes a stored session, or makes one that is stored | session
3.1.2-5 | D | messages for an absent client with clean session 0 are stored | session
3.1.2-6 | T | clean session 1 begins afresh; its state is not used again
3.1.2-7 | N | retained messages outlive sessions | retain
3.1.2-8 | D | a will is stored and published when the client vanishes | will
3.1.2-9 | T | with the will flag, will topic and message are there
3.1.2-10 | T | a will is forgotten on DISCONNECT
3.1.2-11 | T | without the will flag, will QoS, retain, topic and message are absent
3.1.2-12 | T | without the will flag, no will is told
3.1.2-13 | T | without the will flag, will QoS is 0
3.1.2-14 | T | will QoS 3 is not allowed
3.1.2-15 | T | without the will flag, will retain is 0
3.1.2-16 | N | a will without retain is published so | will
3.1.2-17 | D | a will with retain is published as retained | will
3.1.2-18 | T | without the user name flag there is no user name
3.1.2-19 | T | with the user name flag there is one
3.1.2-20 | T | without the password flag there is no password
3.1.2-21 | T | with the password flag there is one
3.1.2-22 | T | no password flag without the user name flag
3.1.2-23 | N | a client pings when it has nothing else to send | client
3.1.2-24 | T | silence of 1.5 x keep-alive ends the connection
3.1.3-1 | T | payload fields come in their order
3.1.3-2 | D | the client identifier identifies the session's state | vin
3.1.3-3 | T | the client identifier is there, first in the payload
3.1.3-4 | T | the client identifier is UTF-8
3.1.3-5 | T | client identifiers of 1 to 23 letters and digits are allowed
3.1.3-6 | T | an empty client identifier is served as a special case
3.1.3-7 | T | an empty client identifier needs clean session 1
3.1.3-8 | T | an empty client identifier with clean session 0 is answered with return code 2, then closed
3.1.3-9 | T | a refused client identifier is answered with return code 2, then closed
3.1.3-10 | T | the will topic is UTF-8
3.1.3-11 | T | the user name is UTF-8
3.1.4-1 | T | a CONNECT that does not conform is closed without CONNACK
3.1.4-2 | T | the older connection of the same client is closed
3.1.4-3 | T | clean session is processed
3.1.4-4 | T | a valid CONNECT is answered with return code 0
3.1.4-5 | T | what follows a refused CONNECT is not processed
3.2.0-1 | T | the first packet of the server is CONNACK
3.2.2-1 | T | clean session 1: session present is 0
3.2.2-2 | N | clean session 0 with a stored session: session present is 1 | session
3.2.2-3 | T | no stored session: session present is 0
3.2.2-4 | T | a return code other than 0 comes with session present 0
3.2.2-5 | T | a return code other than 0 is followed by closing
3.2.2-6 | T | where no return code fits, closed without CONNACK
3.3.1-1 | N | DUP is 1 when a PUBLISH is sent again | again
3.3.1-2 | T | DUP is 0 at QoS 0
3.3.1-3 | T | DUP of what goes out does not follow what came in
3.3.1-4 | T | QoS 3 closes the connection
3.3.1-5 | D | a PUBLISH with retain is stored for later subscribers | retain
3.3.1-6 | N | a new subscription gets retained messages | retain
3.3.1-7 | N | retain at QoS 0 discards what was retained | retain
3.3.1-8 | N | what goes out to a new subscription has retain 1 | retain
3.3.1-9 | T | what goes out to an established subscription has retain 0
3.3.1-10 | N | an empty retained PUBLISH removes what was retained | retain
3.3.1-11 | T | an empty retained PUBLISH is not retained
3.3.1-12 | T | without retain nothing is retained or replaced
3.3.2-1 | T | the topic name comes first and is UTF-8
3.3.2-2 | T | a topic name has no wildcards
3.3.2-3 | T | the topic of what goes out matches the subscription
3.3.4-1 | T | PUBLISH is answered by its QoS
3.3.5-1 | T | overlapping subscriptions: the highest QoS of them counts
3.3.5-2 | T | a PUBLISH that is not authorised is acknowledged or the connection closed
3.6.1-1 | T | PUBREL has flags 2, anything else closes the connection
3.8.1-1 | T | SUBSCRIBE has flags 2, anything else closes the connection
3.8.3-1 | T | topic filters of SUBSCRIBE are UTF-8
3.8.3-2 | T | a server without wildcards refuses filters that have them
3.8.3-3 | T | SUBSCRIBE has at least one filter
3.8.3-4 | T | reserved bits or QoS 3 in a SUBSCRIBE close the connection
3.8.4-1 | T | SUBSCRIBE is answered by SUBACK
3.8.4-2 | T | SUBACK has the packet identifier of the SUBSCRIBE
3.8.4-3 | T | the same filter again replaces the subscription
3.8.4-4 | T | several filters are handled as several SUBSCRIBEs with one answer
3.8.4-5 | T | a return code per filter, the granted QoS or failure
3.8.4-6 | T | what goes out has the lower of published and granted QoS
3.9.3-1 | T | return codes are in the order of the filters
3.9.3-2 | T | return codes of SUBACK are 0, 1, 2 and 0x80 only
3.10.1-1 | T | UNSUBSCRIBE has flags 2, anything else closes the connection
3.10.3-1 | T | topic filters of UNSUBSCRIBE are UTF-8
3.10.3-2 | T | UNSUBSCRIBE has at least one filter
3.10.4-1 | T | filters are compared byte for byte; what matches is deleted
3.10.4-2 | T | nothing new goes out after UNSUBSCRIBE
3.10.4-3 | T | a delivery that was begun before UNSUBSCRIBE is completed
3.10.4-4 | T | UNSUBACK has the packet identifier of the UNSUBSCRIBE
3.10.4-5 | T | UNSUBACK comes even if nothing was deleted
3.10.4-6 | T | several filters are handled as several UNSUBSCRIBEs with one answer
3.12.4-1 | T | PINGREQ is answered by PINGRESP
3.14.1-1 | T | reserved bits of DISCONNECT are checked
3.14.4-1 | N | a client closes after its DISCONNECT | client
3.14.4-2 | T | a client sends nothing after its DISCONNECT
3.14.4-3 | T | DISCONNECT discards the will
4.1.0-1 | T | session state is kept for the whole session
4.1.0-2 | T | a session lasts at least as long as its connection
4.3.1-1 | T | at QoS 0 the sender sends QoS 0, DUP 0
4.3.2-1 | T | at QoS 1 the sender uses an unused identifier and DUP 0, and waits for PUBACK
4.3.2-2 | T | at QoS 1 the receiver answers PUBACK once it owns the message; the identifier again is a new message
4.3.3-1 | N | at QoS 2 the sender's rules | qos2
4.3.3-2 | T | at QoS 2 the receiver answers PUBREC and PUBCOMP, and passes the message on once
4.4.0-1 | N | a resumed session sends again what was not acknowledged | session
4.5.0-1 | N | a message is added to the sessions of all who match | router
4.5.0-2 | N | a client acknowledges whatever it receives | client
4.6.0-1 | N | a client sends again in the original order | client
4.6.0-2 | T | PUBACKs come in the order of the PUBLISHes
4.6.0-3 | T | PUBRECs come in the order of the PUBLISHes
4.6.0-4 | N | PUBRELs come in the order of the PUBRECs | client
4.6.0-5 | T | topics are ordered by default
4.6.0-6 | T | an ordered topic keeps the order of its publisher
4.7.1-1 | T | no wildcards in a topic name
4.7.1-2 | T | # stands alone in the last level
4.7.1-3 | T | + takes a whole level
4.7.2-1 | T | a filter that begins with a wildcard does not match topics that begin with $
4.7.3-1 | T | topic names and filters have at least one character
4.7.3-2 | T | no U+0000 in topic names and filters
4.7.3-3 | T | topic names and filters have at most 65,535 bytes
4.7.3-4 | T | matching does not normalise
4.8.0-1 | T | a violation of the protocol closes the connection
4.8.0-2 | D | a transient error closes the connection | away
6.0.0-1 | N | MQTT over WebSocket in binary frames | ws
6.0.0-2 | N | packets may cross WebSocket frames | ws
6.0.0-3 | N | a client offers the sub-protocol mqtt | ws
6.0.0-4 | N | a server answers with the sub-protocol mqtt | ws
7.0.0-1 | N | who is server and client conforms as both | one
7.0.0-2 | T | no extension is needed to work together
7.1.1-1 | T | a server offers an ordered, lossless stream of bytes
7.1.2-1 | N | a client uses an ordered, lossless stream of bytes | client
"""

MQTT_5: Final = """
1.5.4-1 | T | strings are well-formed UTF-8 without surrogates
1.5.4-2 | T | no U+0000 in strings
1.5.4-3 | T | EF BB BF is U+FEFF anywhere and is not stripped
1.5.5-1 | T | variable byte integers are written in as few bytes as possible
1.5.7-1 | T | both strings of a pair keep to the rules for strings
2.1.3-1 | T | reserved flag bits have the listed value
2.2.1-2 | T | a PUBLISH at QoS 0 has no packet identifier
2.2.1-3 | T | a client's packet identifiers are not 0, and unused
2.2.1-4 | T | a server's packet identifiers are not 0, and unused
2.2.1-5 | T | PUBACK, PUBREC, PUBREL, PUBCOMP have the identifier of their PUBLISH
2.2.1-6 | T | SUBACK and UNSUBACK have the identifier of what they answer
2.2.2-1 | T | no properties: a property length of 0
3.1.0-1 | T | the first packet of a client is CONNECT
3.1.0-2 | T | a second CONNECT is a protocol error and ends the connection
3.1.2-1 | T | the protocol name is MQTT, else closed, with 0x84 if at all
3.1.2-2 | T | a version that is not served is closed, with 0x84 if at all
3.1.2-3 | T | the reserved connect flag is checked
3.1.2-4 | T | clean start 1 begins afresh
3.1.2-5 | N | clean start 0 resumes an existing session | session
3.1.2-6 | T | clean start 0 without a session makes a new one
3.1.2-7 | T | a will is stored with the session
3.1.2-8 | D | a will is published when the client vanishes or the session ends | will
3.1.2-9 | T | with the will flag, will properties, topic and payload are there
3.1.2-10 | T | a will is forgotten on DISCONNECT with 0x00
3.1.2-11 | T | without the will flag, will QoS is 0
3.1.2-12 | T | will QoS is 0, 1 or 2
3.1.2-13 | T | without the will flag, will retain is 0
3.1.2-14 | N | a will without retain is published so | will
3.1.2-15 | N | a will with retain is published as retained | such a CONNECT is refused with 0x9A, as 3.2.2-13 has it
3.1.2-16 | T | without the user name flag there is no user name
3.1.2-17 | T | with the user name flag there is one
3.1.2-18 | T | without the password flag there is no password
3.1.2-19 | T | with the password flag there is one
3.1.2-20 | N | a client pings when it has nothing else to send | client
3.1.2-21 | N | a client uses the server's keep-alive | client
3.1.2-22 | T | silence of 1.5 x keep-alive ends the connection
3.1.2-23 | N | a session with an expiry is stored after the connection | session
3.1.2-24 | T | no packet goes out that exceeds the client's maximum packet size
3.1.2-25 | T | what is too large is dropped as if it had been sent
3.1.2-26 | T | no topic alias above the client's maximum goes out
3.1.2-27 | T | no topic alias goes out where none is allowed
3.1.2-28 | T | no response information where it was not asked for
3.1.2-29 | T | request problem information 0: reason strings in CONNACK and DISCONNECT only
3.1.2-30 | N | a client with an authentication method waits for CONNACK | auth
3.1.3-1 | T | payload fields come in their order
3.1.3-2 | D | the client identifier identifies the session's state | vin
3.1.3-3 | T | the client identifier is there, first in the payload
3.1.3-4 | T | the client identifier is UTF-8
3.1.3-5 | T | client identifiers of 1 to 23 letters and digits are allowed
3.1.3-6 | T | an empty client identifier is given a unique one
3.1.3-7 | T | the assigned client identifier is told, and used
3.1.3-8 | T | a refused client identifier: closed, with 0x85 if at all
3.1.3-9 | T | a client that is back before the will delay: no will
3.1.3-10 | N | a will's user properties keep their order when published | will
3.1.3-11 | T | the will topic is UTF-8
3.1.3-12 | T | the user name is UTF-8
3.1.4-1 | T | a CONNECT of the wrong form is closed
3.1.4-2 | T | a CONNECT that fails authentication or authorisation is closed
3.1.4-3 | T | the older connection of the same client gets 0x8E and is closed
3.1.4-4 | T | clean start is processed
3.1.4-5 | T | a valid CONNECT is answered with 0x00
3.1.4-6 | T | what follows a refused CONNECT is not processed
3.2.0-1 | T | CONNACK comes before any other packet
3.2.0-2 | T | one CONNACK per connection
3.2.2-1 | T | reserved acknowledge flags are 0
3.2.2-2 | T | clean start 1: session present is 0
3.2.2-3 | T | clean start 0: session present tells whether there was a session
3.2.2-4 | N | a client without a session closes on session present 1 | client
3.2.2-5 | N | a client discards its session on session present 0 | client
3.2.2-6 | T | a reason code other than 0 comes with session present 0
3.2.2-7 | T | a reason code of 0x80 or more is followed by closing
3.2.2-8 | T | only connect reason codes are used
3.2.2-9 | T | a server without QoS 1 or 2 tells a maximum QoS (this one has both, and tells none)
3.2.2-10 | N | a server without QoS 1 or 2 still accepts SUBSCRIBEs for them | QoS 0, 1 and 2 are all served
3.2.2-11 | N | a client keeps to maximum QoS | QoS 0, 1 and 2 are all served
3.2.2-12 | N | a will QoS beyond the server's is refused with 0x9B | QoS 0, 1 and 2 are all served
3.2.2-13 | T | a retained will is refused with 0x9A where nothing is retained
3.2.2-14 | T | no client publishes with retain where nothing is retained
3.2.2-15 | T | no client exceeds the server's maximum packet size
3.2.2-16 | T | an assigned client identifier is new
3.2.2-17 | T | no client uses an alias above topic alias maximum
3.2.2-18 | N | no client uses an alias where none is allowed | sixteen are allowed
3.2.2-19 | T | a reason string that makes CONNACK too large is left out
3.2.2-20 | N | user properties that make CONNACK too large are left out | no user property is ever sent
3.2.2-21 | N | a client uses the server's keep-alive | client
3.2.2-22 | T | without server keep-alive the client's counts
3.3.1-1 | N | DUP is 1 when a PUBLISH is sent again | again
3.3.1-2 | T | DUP is 0 at QoS 0
3.3.1-3 | T | DUP of what goes out does not follow what came in
3.3.1-4 | T | no PUBLISH with QoS 3
3.3.1-5 | N | a PUBLISH with retain replaces what was retained | retain
3.3.1-6 | N | an empty retained PUBLISH removes what was retained | retain
3.3.1-7 | N | an empty PUBLISH is not retained | retain
3.3.1-8 | T | without retain nothing is retained or replaced
3.3.1-9 | N | retain handling 0 sends retained messages | retain
3.3.1-10 | N | retain handling 1 sends retained messages to new subscriptions | retain
3.3.1-11 | T | retain handling 2 sends no retained messages
3.3.1-12 | T | retain as published 0: what goes out has retain 0
3.3.1-13 | N | retain as published 1: what goes out has the retain of what came in | retain
3.3.2-1 | T | the topic name comes first and is UTF-8
3.3.2-2 | T | a topic name has no wildcards
3.3.2-3 | T | the topic of what goes out matches the subscription
3.3.2-4 | N | payload format goes out as it came in | router
3.3.2-5 | N | an expired message is not delivered | router
3.3.2-6 | N | message expiry goes out less the time waited | router
3.3.2-7 | T | aliases do not outlive their connection
3.3.2-8 | T | no alias 0
3.3.2-9 | T | no alias of a client above topic alias maximum
3.3.2-10 | N | a client accepts the aliases it allowed | client
3.3.2-11 | T | no alias of the server above the client's maximum
3.3.2-12 | T | the server accepts all aliases it allowed
3.3.2-13 | T | the response topic is UTF-8
3.3.2-14 | T | the response topic has no wildcards
3.3.2-15 | N | the response topic goes out as it came in | router
3.3.2-16 | N | correlation data goes out as it came in | router
3.3.2-17 | N | user properties go out as they came in | router
3.3.2-18 | N | user properties keep their order | router
3.3.2-19 | T | the content type is UTF-8
3.3.2-20 | N | the content type goes out as it came in | router
3.3.4-1 | T | PUBLISH is answered by its QoS
3.3.4-2 | T | overlapping subscriptions: the highest QoS of them counts
3.3.4-3 | N | subscription identifiers go out with overlapping subscriptions | subid
3.3.4-4 | N | one copy names all matching subscription identifiers | subid
3.3.4-5 | N | several copies name one each | subid
3.3.4-6 | T | a client's PUBLISH has no subscription identifier
3.3.4-7 | T | no more un-acknowledged from a client than receive maximum
3.3.4-8 | N | a client holds back nothing but PUBLISH for it | client
3.3.4-9 | T | no more un-acknowledged from the server than the client's receive maximum
3.3.4-10 | T | the server holds back nothing but PUBLISH for it
3.4.2-1 | T | only PUBACK reason codes are used
3.4.2-2 | N | a reason string that makes PUBACK too large is left out | bare
3.4.2-3 | N | user properties that make PUBACK too large are left out | bare
3.5.2-1 | T | only PUBREC reason codes are used
3.5.2-2 | N | a reason string that makes PUBREC too large is left out | bare
3.5.2-3 | N | user properties that make PUBREC too large are left out | bare
3.6.1-1 | T | PUBREL has flags 2, anything else is malformed
3.6.2-1 | T | only PUBREL reason codes are used
3.6.2-2 | N | a reason string that makes PUBREL too large is left out | qos2
3.6.2-3 | N | user properties that make PUBREL too large are left out | qos2
3.7.2-1 | T | only PUBCOMP reason codes are used
3.7.2-2 | N | a reason string that makes PUBCOMP too large is left out | bare
3.7.2-3 | N | user properties that make PUBCOMP too large are left out | bare
3.8.1-1 | T | SUBSCRIBE has flags 2, anything else is malformed
3.8.3-1 | T | topic filters of SUBSCRIBE are UTF-8
3.8.3-2 | T | SUBSCRIBE has at least one filter
3.8.3-3 | T | no local: what a client publishes does not come back to it
3.8.3-4 | T | no local on a shared subscription is a protocol error
3.8.3-5 | T | reserved option bits make a SUBSCRIBE malformed
3.8.4-1 | T | SUBSCRIBE is answered by SUBACK
3.8.4-2 | T | SUBACK has the packet identifier of the SUBSCRIBE
3.8.4-3 | T | the same filter again replaces the subscription
3.8.4-4 | T | replacing a subscription loses nothing
3.8.4-5 | T | several filters are handled as several SUBSCRIBEs with one answer
3.8.4-6 | T | a reason code per filter
3.8.4-7 | T | the reason code is the granted QoS or a failure
3.8.4-8 | T | what goes out has the lower of published and granted QoS
3.9.2-1 | N | a reason string that makes SUBACK too large is left out | bare
3.9.2-2 | N | user properties that make SUBACK too large are left out | bare
3.9.3-1 | T | reason codes are in the order of the filters
3.9.3-2 | T | only subscribe reason codes are used
3.10.1-1 | T | UNSUBSCRIBE has flags 2, anything else is malformed
3.10.3-1 | T | topic filters of UNSUBSCRIBE are UTF-8
3.10.3-2 | T | UNSUBSCRIBE has at least one filter
3.10.4-1 | T | filters are compared character by character; what matches is deleted
3.10.4-2 | T | nothing new goes out after UNSUBSCRIBE
3.10.4-3 | T | a delivery that was begun before UNSUBSCRIBE is completed
3.10.4-4 | T | UNSUBSCRIBE is answered by UNSUBACK
3.10.4-5 | T | UNSUBACK has its identifier and comes even if nothing was deleted
3.10.4-6 | T | several filters are handled as several UNSUBSCRIBEs with one answer
3.11.2-1 | N | a reason string that makes UNSUBACK too large is left out | bare
3.11.2-2 | N | user properties that make UNSUBACK too large are left out | bare
3.11.3-1 | T | reason codes are in the order of the filters
3.11.3-2 | T | only unsubscribe reason codes are used
3.12.4-1 | T | PINGREQ is answered by PINGRESP
3.14.0-1 | T | no DISCONNECT of the server before a good CONNACK
3.14.1-1 | T | reserved bits of DISCONNECT are checked, 0x81 if set
3.14.2-1 | T | only disconnect reason codes are used
3.14.2-2 | T | no session expiry in a DISCONNECT of the server
3.14.2-3 | T | a reason string that makes DISCONNECT too large is left out
3.14.2-4 | N | user properties that make DISCONNECT too large are left out | no user property is ever sent
3.14.4-1 | T | nothing is sent after DISCONNECT
3.14.4-2 | T | who sends DISCONNECT closes
3.14.4-3 | T | DISCONNECT with 0x00 discards the will
3.15.1-1 | T | AUTH has flags 0, anything else is malformed
3.15.2-1 | N | only authenticate reason codes are used | auth
3.15.2-2 | N | a reason string that makes AUTH too large is left out | auth
3.15.2-3 | N | user properties that make AUTH too large are left out | auth
4.1.0-1 | T | session state is kept while the connection is open
4.1.0-2 | T | session state is discarded when connection and expiry have passed
4.2-1 | T | a server offers an ordered, lossless stream of bytes
4.3.1-1 | T | at QoS 0 the sender sends QoS 0, DUP 0
4.3.2-1 | T | at QoS 1 the sender uses an unused identifier
4.3.2-2 | T | at QoS 1 the sender sends DUP 0 at first
4.3.2-3 | T | at QoS 1 a message is un-acknowledged until PUBACK
4.3.2-4 | T | at QoS 1 the receiver answers PUBACK once it owns the message
4.3.2-5 | T | after PUBACK the identifier again is a new message, whatever DUP says
4.3.3-1 | N | at QoS 2 the sender uses an unused identifier | qos2
4.3.3-2 | N | at QoS 2 the sender sends DUP 0 at first | qos2
4.3.3-3 | N | at QoS 2 a message is un-acknowledged until PUBREC | qos2
4.3.3-4 | N | at QoS 2 the sender answers PUBREC with PUBREL | qos2
4.3.3-5 | N | at QoS 2 PUBREL is un-acknowledged until PUBCOMP | qos2
4.3.3-6 | N | at QoS 2 nothing is sent again behind its PUBREL | qos2
4.3.3-7 | N | at QoS 2 what was sent does not expire | qos2
4.3.3-8 | T | at QoS 2 the receiver answers PUBREC once it owns the message
4.3.3-9 | T | after a PUBREC with an error the identifier again is a new message
4.3.3-10 | T | until PUBREL the identifier again is answered by PUBREC and passed on once
4.3.3-11 | T | PUBREL is answered by PUBCOMP with its identifier
4.3.3-12 | T | after PUBCOMP the identifier again is a new message
4.3.3-13 | T | the QoS 2 exchange goes on even if the message has expired
4.4.0-1 | T | nothing is sent again but on a resumed session
4.4.0-2 | T | a PUBACK with an error counts as acknowledged: not sent again
4.5.0-1 | N | a message is added to the sessions of all who match | router
4.5.0-2 | N | a client acknowledges whatever it receives | client
4.6.0-1 | N | a client sends again in the original order | client
4.6.0-2 | T | PUBACKs come in the order of the PUBLISHes
4.6.0-3 | T | PUBRECs come in the order of the PUBLISHes
4.6.0-4 | N | PUBRELs come in the order of the PUBRECs | client
4.6.0-5 | T | an ordered topic keeps the order of its publisher
4.6.0-6 | T | topics are ordered by default
4.7.0-1 | T | no wildcards in a topic name
4.7.1-1 | T | # stands alone in the last level
4.7.1-2 | T | + takes a whole level
4.7.2-1 | T | a filter that begins with a wildcard does not match topics that begin with $
4.7.3-1 | T | topic names and filters have at least one character
4.7.3-2 | T | no U+0000 in topic names and filters
4.7.3-3 | T | topic names and filters have at most 65,535 bytes
4.7.3-4 | T | matching does not normalise
4.8.2-1 | T | a shared filter begins with $share/ and a name
4.8.2-2 | T | a share name has no /, + or #, and a filter behind it
4.8.2-3 | N | a shared subscription's granted QoS is kept to | share
4.8.2-4 | N | a QoS 2 delivery to a member that was cut off is completed | share
4.8.2-5 | N | a delivery to a member whose session ended goes to no other | share
4.8.2-6 | N | a delivery that a member refused goes to no other | share
4.9.0-1 | T | the send quota begins at no more than receive maximum
4.9.0-2 | T | no PUBLISH above QoS 0 goes out while the quota is 0
4.9.0-3 | T | all other packets are processed while the quota is 0
4.12.0-1 | T | an authentication method that is not offered: 0x8C or 0x87, and closed
4.12.0-2 | N | AUTH of the server has 0x18 | auth
4.12.0-3 | N | AUTH of the client has 0x18 | auth
4.12.0-4 | T | a refused authentication: an error in CONNACK if at all, and closed
4.12.0-5 | N | AUTH and CONNACK name the method of the CONNECT | auth
4.12.0-6 | T | without a method no AUTH and no method is sent
4.12.0-7 | T | without a method a client sends no AUTH
4.12.1-1 | N | re-authentication names the same method | auth
4.12.1-2 | N | a failed re-authentication ends the connection | auth
4.13.1-1 | T | a malformed packet or protocol error closes the connection
4.13.2-1 | T | a reason code of 0x80 or more closes the connection
6.0.0-1 | N | MQTT over WebSocket in binary frames | ws
6.0.0-2 | N | packets may cross WebSocket frames | ws
6.0.0-3 | N | a client offers the sub-protocol mqtt | ws
6.0.0-4 | N | a server answers with the sub-protocol mqtt | ws
"""

_VERDICTS: Final = {"T": Verdict.TESTED, "N": Verdict.NO_CONCERN, "D": Verdict.DEVIATES}


def _read(version: str, table: str) -> list[Statement]:
    found = []
    for line in table.strip().splitlines():
        number, letter, text, reason = (line + " | ").split(" | ")[:4]
        found.append(Statement(version, number, _VERDICTS[letter], text, REASONS.get(reason, reason)))
    return found


STATEMENTS: Final = _read("3.1.1", MQTT_311) + _read("5", MQTT_5)
