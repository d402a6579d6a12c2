"""What clients expect of answers that the server of `transformers serve` gives otherwise."""

import json


async def to_the_end(chunks):
    """The chunks of a stream, then [DONE]; or an error instead of it, as proper JSON."""
    async for chunk in chunks:
        head, found, message = chunk.rpartition('data: {"error": "')
        if found:
            message = {"error": {"message": message.removesuffix('"}\n\n')}}
            yield f"{head}data: {json.dumps(message)}\n\n"
            return
        yield chunk
    yield "data: [DONE]\n\n"


def without_stop(answer, stops):
    """An answer (the JSON of a completion) up to the first of the texts that end it."""
    choice = answer["choices"][0]
    holder, name = (choice, "text") if "text" in choice else (choice["message"], "content")
    text = holder.get(name) or ""
    found = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops)]
    ends = [place for place in found if place >= 0]
    if ends:
        holder[name], choice["finish_reason"] = text[: min(ends)], "stop"
    return answer
