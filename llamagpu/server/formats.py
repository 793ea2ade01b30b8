"""``response_format``: what an answer must look like, in OpenAI's shape."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llamagpu.server.errors import BAD_REQUEST, RequestError


class SchemaFormat(BaseModel):
    """A JSON schema in OpenAI's envelope. Schemas always hold, whatever ``strict`` says."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str | None = None
    description: str | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """Text, any JSON object, or JSON of a schema."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None

    def options(self) -> dict[str, Any]:
        """The engine's settings.

        Raises:
            RequestError: there is a schema without its type, or the type without a schema.
        """
        if (self.type == "json_schema") != (self.json_schema is not None):
            what = "response_format has the type json_schema without a schema."
            if self.json_schema is not None:
                what = f"response_format has a schema, but the type {self.type}."
            raise RequestError(BAD_REQUEST, what, param="response_format")
        if self.json_schema is not None:
            return {"json_schema": self.json_schema.json_schema}
        return {"json_object": True} if self.type == "json_object" else {}
